"""What a real run executes of a scenario: the same, but for what only a simulation can do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from moesim.errors import SpecError
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from traces.base.memory import physical_memory

DTYPES = ("fp32", "bf16", "fp16")
"""What the executor multiplies."""

Machine = Callable[[Scenario, int], Sequence[Override]]
"""Where a scenario runs on so many ranks, as overrides of it."""

_FLAG = "--ranks"
_SILENT = ("profile",)
"""What may change without a word: a real run takes as long as it takes."""


@dataclass(frozen=True)
class Executable:
    """A scenario that can run for real.

    Attributes:
        notes: each way in which it differs from what the user wrote.
    """

    scenario: Scenario
    notes: tuple[str, ...]


def executable(name: str, overrides: Sequence[Override], ranks: int, machine: Machine) -> Executable:
    """What a real run on ``ranks`` ranks executes of the scenario ``name`` with the user's ``overrides``.

    Raises:
        MoesimError: the scenario breaks a rule, as it stands or on so many ranks.
    """
    asked = _asked(name, overrides, ranks)
    changes = [*((change, "") for change in machine(asked, ranks)), *_changes(asked, ranks)]
    scenario = load_scenario(name, [*overrides, *(change for change, _ in changes)])
    notes = []
    for change, why in changes:
        before, after = _at(asked, change), _at(scenario, change)
        if before != after and change.loc[0] not in _SILENT:
            of_profile = change.loc == ("cluster",) and asked.cluster == asked.profile.machine
            instead = "the profile's" if of_profile else _short(before)
            notes.append(f"{change.key} is {_short(after)}, not {instead}{why and f': {why}'}")
    return Executable(scenario, tuple(notes))


def _asked(name: str, overrides: Sequence[Override], ranks: int) -> Scenario:
    """The scenario as it stands, or where something in it fits ``ranks`` alone, with that many."""
    group = Override(("parallelism",), {"ep": ranks}, _FLAG)
    try:
        return load_scenario(name, overrides)
    except SpecError as fault:
        with contextlib.suppress(SpecError):
            return load_scenario(name, [*overrides, group])
        raise fault


def own_cluster(scenario: Scenario, ranks: int) -> list[Override]:
    """The scenario's own cluster, with as many of its nodes as the ranks fill."""
    cluster = scenario.cluster
    nodes = max(1, ranks // cluster.gpus_per_node)
    return [
        Override(("cluster", "nodes"), nodes, _FLAG),
        Override(("cluster", "gpus_per_node"), min(cluster.gpus_per_node, ranks), _FLAG),
    ]


def cpu_ranks(scenario: Scenario, ranks: int, *, serial: bool = False) -> list[Override]:
    """This machine's CPU, whose memory the ranks share, or have in turns where they run one by one."""
    # Only the memory counts: nothing of a real run is predicted.
    rate = 1e9
    memory = physical_memory() // (1 if serial else ranks)
    gpu = {
        "name": "cpu",
        "memory": memory,
        "memory_bandwidth": rate,
        "flops": {_dtype(scenario): rate},
        # More than transfer kernels of any profile take, for the overlap that a scenario may ask for.
        "sms": 1 << 10,
        "nvlink": {"bandwidth": rate},
        "source": "memory: of this machine, its part for each rank; the rates are not used",
    }
    return _one_node("this machine's CPU", gpu, ranks, {"bandwidth": rate})


def local_gpus(scenario: Scenario, ranks: int, *, serial: bool = False) -> list[Override]:
    """A node of so many of the scenario's GPUs, of whose kind those of this machine are taken to be.

    One GPU that stands for all of them in turns has as much memory as each.
    """
    cluster = scenario.cluster
    gpu, nic = cluster.gpu.model_dump(mode="json"), cluster.nic.model_dump(mode="json")
    return _one_node(f"{ranks} GPUs of this machine", gpu, ranks, nic)


def _one_node(name: str, gpu: dict[str, Any], ranks: int, nic: dict[str, Any]) -> list[Override]:
    cluster = {"name": name, "gpu": gpu, "gpus_per_node": ranks, "nic": nic}
    return [Override(("cluster",), cluster, _FLAG), Override(("profile",), "generic", _FLAG)]


def _changes(asked: Scenario, ranks: int) -> Iterator[tuple[Override, str]]:
    """What no real run can do, and why."""

    def change(key: str, value: Any, why: str) -> tuple[Override, str]:
        return Override(tuple(key.split(".")), value, _FLAG), why

    dtype, workload = _dtype(asked), asked.workload
    yield change("parallelism.tp", 1, "attention does not run")
    yield change("parallelism.ep", ranks, "")
    yield change("workload.part", "moe", "only the MoE part of each layer runs, gate to combine")
    if workload.graph_sizes is not None:
        yield change("workload.graph_sizes", None, "batches run as they are")
    for name, amount in workload.amounts.items():
        if amount.ranks is not None and len(amount.ranks) != ranks:
            dealt = [amount.ranks[rank % len(amount.ranks)] for rank in range(ranks)]
            yield change(f"workload.{name}", dealt, f"dealt to {ranks} ranks")
    yield change("faults", [], "hardware is what it is")
    yield change("rebalance", None, "experts stay where they are")
    why = f"the executor multiplies {', '.join(DTYPES)}, all in one dtype"
    for key in ("model.activation_dtype", "model.weight_dtype", "model.expert_dtype"):
        yield change(key, dtype, why)
    kinds = asked.resolved()["model"]["experts"].get("kinds", [])
    if any(kind["dtype"] not in (None, dtype) for kind in kinds):
        yield change("model.experts.kinds", [kind | {"dtype": None} for kind in kinds], why)
    for key in ("dispatch.dtype", "dispatch.combine_dtype"):
        yield change(key, dtype, "activations travel as they are")
    if asked.placement.file is None:
        slots = asked.placement.slots or asked.model.experts.count
        whole = min(-(-slots // ranks) * ranks, asked.model.experts.count * ranks)
        if whole != slots:
            yield change("placement.slots", whole, f"every one of {ranks} ranks has as many")


def _dtype(scenario: Scenario) -> str:
    dtype = scenario.model.activation_dtype
    return dtype if dtype in DTYPES else "bf16"


def _at(scenario: Scenario, change: Override) -> Any:
    """What a scenario has where an override goes; of a cluster its name."""
    value: Any = scenario.resolved()
    for part in change.loc:
        value = value[part]
    return value["name"] if change.loc == ("cluster",) else value


def _short(value: Any) -> str:
    if isinstance(value, list):  # of faults, whose fields are mostly empty
        value = [_given(each) for each in value]
    text = str(value if value or value == 0 else "none")
    return text if len(text) <= 60 else text[:59] + "…"


def _given(value: Any) -> Any:
    return (
        {key: part for key, part in value.items() if part is not None} if isinstance(value, dict) else value
    )


def crowded(processes: int) -> str | None:
    """A remark where CPU ranks outnumber the cores."""
    cores = os.cpu_count() or 1
    if processes <= cores:
        return None
    return f"{processes} ranks share {cores} cores, and slow each other down"


MACHINES: Mapping[str, Callable[..., Sequence[Override]]] = MappingProxyType(
    {"cpu": cpu_ranks, "cuda": local_gpus}
)
"""This machine's ranks, by device."""
