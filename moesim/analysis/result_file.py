"""Reading ``result.json`` and a comparison back, checked as far as tables and pages rely on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NotRequired,  # pydantic needs this one before Python 3.12
)

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from moesim.errors import MoesimError
from traces.base.files import check_format

# A comparison of a thousand points takes a few megabytes.
MAX_BYTES: Final = 1 << 28

Number = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, strict=True)]
# Far above any cluster: a page draws every GPU.
Size = Annotated[int, Field(ge=1, le=1 << 14, strict=True)]


class _StepTime(TypedDict):
    mean: _Positive
    p50: Number
    p95: Number
    p99: Number


class _Ratios(TypedDict):
    assignments: Number
    experts_time: Number
    dispatch_bytes: Number | None


class _Memory(TypedDict):
    max: Fraction
    mean: Fraction


class _Rebalancing(TypedDict):
    rebalances: Count
    moved_experts: Count
    bytes: Fraction
    migration_s: Number
    solver_s: NotRequired[Fraction]


class _Stage(TypedDict):
    policy: str
    kept: Fraction
    rerouted: Fraction
    dropped: Fraction
    added: Fraction
    gate_mass_lost: Number | None


class _Metrics(TypedDict):
    step_time_s: _StepTime
    tokens_per_s: Number
    phase_time_s: dict[str, Number]
    straggler_ratio: _Ratios
    balancedness: Number
    dropped: Fraction
    rerouted: Fraction
    added: Fraction
    gate_mass_lost: Number | None
    cross_node_bytes: Fraction
    gpu_memory_bytes: _Memory
    rebalancing: NotRequired[_Rebalancing]
    stages: NotRequired[list[_Stage]]


class _Attribution(TypedDict):
    hardware_s: Number
    imbalance_s: Number
    network_s: Number
    overhead_s: Number
    ideal_s: Number


_Cause = Literal["tokens", "weights", "attention", "network", "hardware", "none"]


class _Straggler(TypedDict):
    layer: Count
    rank: Count
    share: Fraction
    load: Fraction
    time: Fraction
    lost_s: Number
    cause: _Cause
    expert: Count
    expert_share: Fraction
    expert_load: NotRequired[Fraction]


class Trace(TypedDict):
    name: str
    origin: str
    tokens: Count
    requests: Count
    skew: Fraction
    generated: Annotated[bool, Field(strict=True)]


class Named(TypedDict):
    name: str


class _Cluster(TypedDict):
    gpu: Named
    nodes: Size
    gpus_per_node: Size


class _Parallelism(TypedDict):
    ep: Size
    tp: Size


class _Workload(TypedDict):
    phase: str
    tokens_per_gpu: Any


class Policy(TypedDict):
    policy: str


class _Dispatch(TypedDict):
    mode: str


class _Profile(TypedDict):
    sources: NotRequired[dict[str, str]]


class _Scenario(TypedDict):
    name: str
    model: Named
    cluster: _Cluster
    parallelism: _Parallelism
    workload: _Workload
    placement: Any
    routing: Policy | list[Policy]
    dispatch: _Dispatch
    profile: NotRequired[_Profile]


class _Result(TypedDict):
    scenario: _Scenario
    metrics: _Metrics
    attribution: _Attribution
    data_parallel_imbalance_s: NotRequired[Number]
    notes: NotRequired[list[str]]
    bounds: dict[str, Fraction]
    stragglers: list[_Straggler]
    trace: Trace
    provenance: dict[str, Any]


class _Culprit(TypedDict):
    rank: Count | None
    layers: Count
    cause: _Cause


class _Point(TypedDict):
    vary: dict[str, Any]
    metrics: _Metrics
    attribution: _Attribution
    culprit: NotRequired[_Culprit | None]
    gpus: NotRequired[Size]
    speedup: _Positive
    payback_steps: NotRequired[Fraction | None]
    as_asked: NotRequired[bool]
    notes: NotRequired[list[str]]


class _Comparison(TypedDict):
    baseline: _Result
    points: list[_Point]


_RESULT: Final = TypeAdapter(_Result)
_COMPARISON: Final = TypeAdapter(_Comparison)


def read_result(path: str | Path) -> dict[str, Any]:
    """``result.json`` as the dictionary that the report takes.

    Raises:
        MoesimError: naming the file, the field, the rule and the value.
    """
    return read_checked(path, "result", _RESULT)


def read_comparison(path: str | Path) -> dict[str, Any]:
    """What ``whatif --json`` printed, checked as :func:`read_result` does."""
    return read_checked(path, "whatif", _COMPARISON)


def read_checked(path: str | Path, thing: str, rules: TypeAdapter[Any]) -> dict[str, Any]:
    """A JSON file of format ``moesim.<thing>/1`` that holds to ``rules``.

    Raises:
        MoesimError: naming the file, the field, the rule and the value.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise MoesimError(f"cannot be read: {error.strerror or error}", file=path) from error
    if len(raw) > MAX_BYTES:
        raise MoesimError(f"must not be larger than {MAX_BYTES} bytes", file=path)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MoesimError(f"is not JSON: {error}", file=path) from error
    check_format(
        content.get("format") if isinstance(content, dict) else None, thing, 1, file=path, error=MoesimError
    )
    try:
        rules.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise MoesimError("is missing", file=path, field=field) from error
        raise MoesimError(first["msg"], file=path, field=field, got=first["input"]) from error
    return dict(content)
