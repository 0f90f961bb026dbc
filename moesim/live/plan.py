"""A plan: the folder that says all a real run has to know. Its format stands in ``docs/plan-format.md``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.deployment.batch import batches
from moesim.deployment.deployment import Deployment
from moesim.errors import SpecError
from moesim.output import whole_folder
from moesim.routing.policies import spec_of
from traces.base.files import write_json
from traces.base.memory import require_memory

_ENTRY_BYTES = 6
"""Of an assignment or a candidate: its expert in int16, its weight or score in float32."""


def write_plan(deployment: Deployment, folder: Path) -> None:
    """Write the plan of a deployment, whole or not at all; equal deployments give equal bytes.

    The deployment is of a scenario that can run for real, as ``moesim.live.scenario`` makes it.

    Raises:
        SpecError: the routing of all steps does not fit into memory.
        OutputError: the folder cannot be written.
    """
    arrays = _arrays(deployment)
    with whole_folder(folder) as part:
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array, allow_pickle=False)
        write_json(part / "plan.json", _head(deployment, weighted="weights" in arrays))


def _arrays(deployment: Deployment) -> dict[str, NDArray[Any]]:
    scenario, placement, trace = deployment.scenario, deployment.placement, deployment.replayed
    steps = list(batches(trace, scenario.workload, scenario.parallelism.ep, scenario.seed))
    row_T = np.concatenate([tokens.row_T for tokens in steps])
    _, L, K = trace.ids_TLK.shape
    require_memory(
        len(row_T) * L * (K + trace.meta.candidates) * _ENTRY_BYTES,
        f"a plan of {scenario.workload.steps} steps",
        error=SpecError,
        way_out="lower workload.steps",
    )
    first_N = np.cumsum([0, *(len(tokens.row_T) for tokens in steps)])
    count_LE, slots_LER = placement.replica_table()
    arrays = {
        "offsets": np.stack(
            [first + tokens.offsets_G for first, tokens in zip(first_N[:-1], steps, strict=True)]
        ),
        "ids": trace.ids_TLK[row_T].astype(np.int16),
        "slot_expert": placement.slot_expert_LS,
        "slot_gpu": placement.slot_gpu_S,
        "replica_count": count_LE,
        "replica_slots": slots_LER,
    }
    if len(scenario.model.kinds) > 1:
        arrays["expert_kind"] = scenario.model.kind_LE
    needs = deployment.needs
    if "candidates" in needs:
        # A trace without them has been refused.
        assert trace.candidate_ids_TLC is not None
        assert trace.candidate_scores_TLC is not None
        arrays["candidate_ids"] = trace.candidate_ids_TLC[row_T].astype(np.int16)
        recorded_TLC = trace.candidate_scores_TLC[row_T].astype(np.float32)
        arrays["candidate_scores"] = deployment.scores(recorded_TLC)
    if "categories" in needs:
        assert trace.category_T is not None
        arrays["category"] = trace.category_T[row_T].astype(np.int16)
    if trace.weights_TLK is not None:
        arrays["weights"] = trace.weights_TLK[row_T].astype(np.float32)
    return arrays


def _head(deployment: Deployment, *, weighted: bool) -> dict[str, Any]:
    scenario = deployment.scenario
    model, dispatch, ranks = scenario.model, scenario.dispatch, scenario.parallelism.ep
    kinds = model.kinds
    # With what policies have found in the trace.
    specs = [spec_of(policy) for policy in deployment.policies]
    head: dict[str, Any] = {
        "format": "moesim.plan/2",
        "name": scenario.name,
        "model": {
            "name": model.name,
            "hidden": model.hidden,
            "width": max(kind.width for kind in kinds),
            "gated": model.experts.gated,
            "experts": model.experts.count,
            "top_k": model.experts.top_k,
            "shared_width": model.experts.shared_width,
            "layers": list(model.moe_layers),
        },
        "ranks": ranks,
        "ranks_per_node": min(scenario.cluster.gpus_per_node, ranks),
        "steps": scenario.workload.steps,
        "dtype": model.activation_dtype,
        "dispatch": {"mode": dispatch.mode, "padded": dispatch.padded},
        "replicas": scenario.replicas,
        "routing": specs if isinstance(scenario.routing, list) else specs[0],
        "seed": scenario.seed,
        "weighted": weighted,
    }
    if len(kinds) > 1:
        head["model"]["kinds"] = [asdict(kind) for kind in kinds]
    if scenario.overlap:
        head["overlap"] = list(scenario.overlap)
    if "candidates" in deployment.needs:
        head["candidates"] = {"count": deployment.trace.meta.candidates, "logits": deployment.logits}
    if "categories" in deployment.needs:
        head["categories"] = list(deployment.trace.categories)
    return head
