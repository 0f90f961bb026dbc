"""Reading ``execution.json`` back, checked as far as the page relies on it."""

from __future__ import annotations

from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    NotRequired,  # pydantic needs this one before Python 3.12
)

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from moesim.analysis.result_file import Count, Fraction, Named, Number, Policy, Size, Trace, read_checked


class _Dispatch(TypedDict):
    mode: str


class _Workload(TypedDict):
    steps: Count


class _Scenario(TypedDict):
    name: str
    model: Named
    workload: _Workload
    placement: Any
    routing: Policy | list[Policy]
    dispatch: _Dispatch


class _Run(TypedDict):
    device: str
    backend: str
    repeats: Count
    serial: Annotated[bool, Field(strict=True)]


class _Time(TypedDict):
    mean: Fraction
    p95: Fraction


class _Ratios(TypedDict):
    assignments: Number
    experts_time: Number


class _Metrics(TypedDict):
    layer_time_s: NotRequired[_Time]
    step_time_s: NotRequired[_Time]
    straggler_ratio: _Ratios
    balancedness: Number


class _Rank(TypedDict):
    rank: Count
    seconds: dict[str, Fraction]


class _Execution(TypedDict):
    scenario: _Scenario
    ranks: Size
    run: _Run
    metrics: _Metrics
    per_rank: Annotated[list[_Rank], Field(min_length=1)]
    notes: list[str]
    trace: Trace
    provenance: dict[str, Any]


_EXECUTION: Final = TypeAdapter(_Execution)


def read_execution(path: str | Path) -> dict[str, Any]:
    """``execution.json`` as the dictionary that tables and page take.

    Raises:
        MoesimError: naming the file, the field, the rule and the value.
    """
    return read_checked(path, "execution", _EXECUTION)
