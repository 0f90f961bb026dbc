"""Reading ``validation.json`` back, checked as far as tables and the page rely on it."""

from __future__ import annotations

from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NotRequired,  # pydantic needs this one before Python 3.12
)

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from moesim.analysis.result_file import Count, Fraction, Named, Number, Policy, Size, Trace, read_checked


class _Dispatch(TypedDict):
    mode: str


class _Scenario(TypedDict):
    name: str
    model: Named
    placement: Any
    routing: Policy | list[Policy]
    dispatch: _Dispatch


class _Error(TypedDict):
    median: Fraction
    p95: Fraction
    bias: Number


class _Errors(TypedDict):
    step: _Error | None
    layer: _Error | None
    router: _Error | None
    shared_expert: NotRequired[_Error | None]
    experts: _Error | None
    dispatch: _Error | None
    combine: _Error | None


class _Noise(TypedDict):
    median: Fraction
    p95: Fraction


class _Seconds(TypedDict):
    measured: Fraction
    simulated: Fraction


class _RankSeconds(TypedDict):
    experts: _Seconds


class _RankErrors(TypedDict):
    experts: _Error | None


class _Rank(TypedDict):
    rank: Count
    seconds: _RankSeconds
    error: _RankErrors


class _LayerErrors(TypedDict):
    layer: _Error | None
    experts: _Error | None
    dispatch: _Error | None
    combine: _Error | None


class _Layer(TypedDict):
    layer: Count
    seconds: _Seconds
    error: _LayerErrors


class _Pairs(TypedDict):
    compared: Count
    left_out: Count


class _Validation(TypedDict):
    scenario: _Scenario
    ranks: Size
    device: str
    verdict: Literal["ok", "noisy"]
    repeats: Count
    seconds: dict[str, _Seconds]
    error: _Errors
    noise: dict[str, _Noise | None]
    per_rank: list[_Rank]
    per_layer: list[_Layer]
    straggler_ratio: _Seconds
    rank_order_tau: Annotated[float, Field(ge=-1, le=1)] | None
    rank_order_pairs: _Pairs
    counts_equal: bool | None
    simulated_phases: list[str]
    notes: list[str]
    trace: Trace
    provenance: dict[str, Any]


_VALIDATION: Final = TypeAdapter(_Validation)


def read_validation(path: str | Path) -> dict[str, Any]:
    """``validation.json`` as the dictionary that tables and page take.

    Raises:
        MoesimError: naming the file, the field, the rule and the value.
    """
    return read_checked(path, "validation", _VALIDATION)
