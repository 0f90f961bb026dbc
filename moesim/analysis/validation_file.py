"""``validation.json``: how far a simulation is from real runs, in numbers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from moesim.analysis.record import Count, FileRecord, Fraction, Record, Size
from moesim.analysis.scenario_facts import ScenarioFacts, TraceFacts
from moesim.spec.base import fault


class Spread(Record):
    """Over cells that have a value."""

    median: Fraction
    p95: Fraction


class Error(Spread):
    """The spread of errors without their sign, and the median with it: above 0 the simulation is too slow."""

    bias: float


class Pair(Record):
    """What was measured, and what was simulated."""

    measured: Fraction
    simulated: Fraction


def _with(*names: str) -> AfterValidator:
    """Refuses a mapping that lacks one of the names."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        for name in names:
            if name not in value:
                raise fault("is missing", name, got=sorted(value))
        return value

    return AfterValidator(check)


_Errors = dict[str, Error | None]


class RankErrors(Record):
    """A rank's mean seconds of a layer by phase, and its errors."""

    rank: Count
    seconds: Annotated[dict[str, Pair], _with("experts")]
    error: Annotated[_Errors, _with("experts")]


class LayerErrors(Record):
    """Mean seconds of a layer, and its errors by quantity."""

    layer: Count
    seconds: Pair
    error: Annotated[_Errors, _with("layer", "experts", "dispatch", "combine")]


class RankPairs(Record):
    """How many pairs of ranks were compared, and how many differ by no more than the noise."""

    compared: Count
    left_out: Count


class ValidationResult(FileRecord):
    """``validation.json``; see :class:`~moesim.analysis.validation.Validation` for the quantities.

    ``counts_equal`` is None where nothing was sent, ``rank_order_tau`` where no pair of ranks counts.
    """

    THING: ClassVar = "validation"

    format: Literal["moesim.validation/1"] = "moesim.validation/1"
    scenario: ScenarioFacts
    device: str
    ranks: Size
    verdict: Literal["ok", "noisy"]
    repeats: Count
    seconds: dict[str, Pair]
    error: Annotated[_Errors, _with("step", "layer", "router", "experts", "dispatch", "combine")]
    noise: dict[str, Spread | None]
    per_rank: list[RankErrors]
    per_layer: list[LayerErrors]
    straggler_ratio: Pair
    rank_order_tau: Annotated[float, Field(ge=-1, le=1)] | None
    rank_order_pairs: RankPairs
    counts_equal: bool | None
    simulated_phases: list[str]
    notes: list[str]
    trace: TraceFacts
    provenance: dict[str, Any]
