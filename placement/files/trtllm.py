"""TensorRT-LLM: the file of its static expert-parallel load balancer (``examples/wide_ep``)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from placement.files.grid import check_full, expert_rows, full_placement
from placement.files.target import Target
from placement.files.values import check_keys
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement

SYSTEM, KEY = "TensorRT-LLM", "initial_global_assignments"
_KEYS = {"num_slots": int, KEY: dict, "layer_updates_per_iter": int}


def read(content: dict[str, Any], target: Target) -> Placement:
    """From the experts of each slot by the layer's index in the whole model.

    ``layer_updates_per_iter``, by default 0, says how a server goes on from there; nothing here does.

    Raises:
        PlacementError: it breaks its form.
    """
    # The default is the system's.
    found = check_keys({"layer_updates_per_iter": 0, **content}, _KEYS)
    slots, assignments = found["num_slots"], found[KEY]
    if not assignments:
        raise PlacementError("names no layer", field=KEY)
    for layer, row in assignments.items():
        if type(layer) is not int:
            raise PlacementError("keys must be layers of the model, as numbers", field=KEY, got=layer)
        if type(row) is list and len(row) != slots:
            raise PlacementError(
                f"must have {slots} slots, as num_slots says", field=f"{KEY}[{layer}]", got=len(row)
            )
    layers = tuple(sorted(assignments))
    table = expert_rows([(f"{KEY}[{layer}]", assignments[layer]) for layer in layers], target.experts)
    return full_placement(table, replace(target, layers=layers), KEY, SYSTEM)


def load_with(placement: Placement, file: str) -> str:
    """What a server is started with to read the file (examples/wide_ep/ep_load_balancer)."""
    config = json.dumps({"moe_config": {"load_balancer": file}})
    return (
        f"trtllm-serve MODEL --ep_size {placement.gpus} --extra_llm_api_options OPTIONS.yaml, where that "
        f"file holds {config}"
    )


def write(placement: Placement, hidden_layers: int | None) -> str:
    """YAML with exactly ``num_slots``, ``initial_global_assignments`` and ``layer_updates_per_iter``.

    Assignments are by the layer's index in the whole model; 0 updates leave them as they are.

    Raises:
        PlacementError: TensorRT-LLM cannot hold it.
    """
    check_full(placement, SYSTEM)
    rows = zip(placement.layers, placement.slot_expert_LS.tolist(), strict=True)
    assignments = "".join(f"  {layer}: [{', '.join(map(str, experts))}]\n" for layer, experts in rows)
    return f"num_slots: {placement.slots}\n{KEY}:\n{assignments}layer_updates_per_iter: 0\n"
