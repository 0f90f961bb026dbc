"""What is built in, as rows for ``moesim presets``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

from moesim.errors import SpecError
from moesim.hardware.networks import NETWORKS
from moesim.routing.policies import POLICIES, PRESET_SOURCES, PRESETS, policy_from
from moesim.routing.policy import Policy
from moesim.routing.replicas import AGREED, REPLICA_CHOICES
from moesim.spec.base import suggest, validate
from moesim.spec.cluster import MAX_PRESET_NODES, Gpu, preset_system
from moesim.spec.model import Model
from moesim.spec.presets import preset_names, preset_source
from moesim.spec.profile import load_profile
from moesim.spec.question import brief
from moesim.spec.yaml_source import Source
from moesim.units import format_bytes, format_rate
from placement.solvers.solvers import SOLVERS
from traces.sample import SAMPLE_NAME, SAMPLE_TRACE
from traces.trace_file import TraceFile

Row = dict[str, Any]

# As docstrings cite papers.
_PAPER = re.compile(r"\b\d{4}\.\d{5}\b")

# The group for which the memory of a model is shown.
_EP = 8


def catalogue(kind: str | None = None) -> dict[str, list[Row]]:
    """Rows of one kind of preset, or of all kinds.

    Raises:
        SpecError: there is no such kind.
    """
    if kind is not None and kind not in _KINDS:
        raise SpecError(
            f"no such kind; {suggest(kind, _KINDS)}known: {', '.join(_KINDS)}", field="presets", got=kind
        )
    return {name: rows() for name, rows in _KINDS.items() if kind in (None, name)}


def _models() -> list[Row]:
    rows = []
    for name in preset_names("models"):
        model = validate(Model, preset_source("models", name).value)
        experts = model.experts
        rows.append(
            {
                "name": name,
                "MoE layers": f"{len(model.moe_layers)} of {model.layers}",
                "experts": f"{experts.count} top-{experts.top_k}",
                "total": f"{model.total_params / 1e9:.1f} B",
                "active": f"{model.active_params / 1e9:.2f} B",
                f"weights per GPU, EP{_EP}": format_bytes(model.weight_bytes(_EP).total),
                "source": model.source,
            }
        )
    return rows


def _gpus() -> list[Row]:
    rows = []
    for name in preset_names("gpus"):
        gpu = validate(Gpu, preset_source("gpus", name).value)
        rows.append(
            {
                "name": name,
                "memory": format_bytes(gpu.memory),
                "memory bandwidth": format_rate(gpu.memory_bandwidth),
                "TFLOP/s": ", ".join(f"{dtype} {flops / 1e12:.0f}" for dtype, flops in gpu.flops.items()),
                "NVLink, one way": format_rate(gpu.nvlink.bandwidth),
                "source": gpu.source,
            }
        )
    return rows


def _clusters() -> list[Row]:
    rows = []
    for gpu in preset_names("gpus"):
        system = preset_system(gpu)
        most, sharing = system["gpus_per_node"], system.get("gpus_per_nic", 1)
        whose = "each GPU" if sharing == 1 else f"every {sharing} GPUs"
        rows.append(
            {
                "name": f"{gpu}-NxM",
                "is": f"1 to {MAX_PRESET_NODES} nodes of 1 to {most} GPUs, one NIC for {whose}",
                "inside a node": system.get("intra_node", "nvswitch"),
                "example": f"{gpu}-4x8" if most == 8 else f"{gpu}-1x{most}",
                "source": system.get("source", ""),
            }
        )
    return rows


def _scenarios() -> list[Row]:
    return [
        {"name": name, "is": _summary(preset_source("scenarios", name).value)}
        for name in preset_names("scenarios")
    ]


def _summary(value: Mapping[str, Any]) -> str:
    workload, mode = value["workload"], value["dispatch"]["mode"]
    model = value["model"] if isinstance(value["model"], str) else value["model"]["name"]
    cluster = value.get("cluster", f"the machine of profile {value.get('profile')}")
    return (
        f"{model} on {cluster}, EP{value['parallelism']['ep']}, {workload['phase']} with "
        f"{workload['tokens_per_gpu']} tokens a GPU, {mode} dispatch"
    )


def _profiles() -> list[Row]:
    rows = []
    for name in preset_names("profiles"):
        profile = load_profile(name, Source(None, None, {}), ())
        rows.append({"name": name, "gpu": profile.gpu, "date": profile.date, "origin": profile.origin})
    return rows


def _generators() -> list[Row]:
    rows = []
    for name in preset_names("generators"):
        fields = preset_source("generators", name).value
        given = ", ".join(f"{key} {value}" for key, value in fields.items() if key != "source")
        rows.append({"name": name, "is": f"trace: {{synth: {name}}}: {given}", "source": fields["source"]})
    return rows


def _traces() -> list[Row]:
    with TraceFile(SAMPLE_TRACE) as trace:
        meta = trace.meta
        tokens = f"{trace.tokens:,} tokens of {trace.requests} requests"
        shape = f"{len(meta.layers)} layers × {meta.experts} experts, top-{meta.top_k}"
        return [
            {
                "name": SAMPLE_NAME,
                "is": f"{tokens}, {shape}, {meta.candidates} candidates",
                "file": str(SAMPLE_TRACE),
                "licence": meta.licence,
                "source": meta.origin,
            }
        ]


def _policies() -> list[Row]:
    """Policies, and presets with the parameters that they stand for."""
    rows = []
    for name, policy in POLICIES.items():
        # Defaults stand on the class, and no need follows from a parameter without one.
        needs = object.__new__(policy).needs
        papers = dict.fromkeys(_PAPER.findall(policy.__doc__ or ""))
        rows.append(
            _policy(name, _first_line(policy), policy, {}, needs, [f"arXiv {each}" for each in papers])
        )
    for name, spec in PRESETS.items():
        given = {key: value for key, value in spec.items() if key != "policy"}
        policy = POLICIES[str(spec["policy"])]
        needs = policy_from(spec).needs
        rows.append(
            _policy(
                name,
                f"Policy {policy.name} with parameters filled in.",
                policy,
                given,
                needs,
                [PRESET_SOURCES[name]],
            )
        )
    return rows


def _policy(
    name: str,
    what: str,
    policy: type[Policy],
    given: Mapping[str, object],
    needs: Collection[str],
    sources: Sequence[str],
) -> Row:
    """A row: parameters with ``given`` values or defaults, and what the policy needs with these."""
    parameters = []
    # Parameters of a base class come first, and have defaults.
    fields = dataclasses.fields(cast(Any, policy))
    for field in sorted(fields, key=lambda field: field.default is not dataclasses.MISSING):
        value = given.get(field.name, field.default)
        parameters.append(field.name if value is dataclasses.MISSING else f"{field.name}={brief(value)}")
    return {
        "name": name,
        "is": what,
        "parameters": ", ".join(parameters) or "none",
        "needs": ", ".join(sorted(needs)) or "nothing",
        "source": ", ".join(sources) or "none",
    }


def _replicas() -> list[Row]:
    return [
        row | {"decided by": "all ranks together" if row["name"] in AGREED else "each home rank alone"}
        for row in _described(REPLICA_CHOICES)
    ]


def _described(known: Mapping[str, object]) -> list[Row]:
    return [{"name": name, "is": _first_line(thing)} for name, thing in known.items()]


def _first_line(thing: object) -> str:
    """Of the docstring, without markup."""
    return (thing.__doc__ or "").strip().partition("\n")[0].replace("``", "'")


_KINDS: dict[str, Callable[[], list[Row]]] = {
    "models": _models,
    "gpus": _gpus,
    "clusters": _clusters,
    "scenarios": _scenarios,
    "traces": _traces,
    "generators": _generators,
    "routing": _policies,
    "replicas": _replicas,
    "networks": lambda: _described(NETWORKS),
    "profiles": _profiles,
    "solvers": lambda: [{"name": solver.name, "is": solver.summary} for solver in SOLVERS.values()],
}
