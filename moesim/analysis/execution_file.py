"""``execution.json``: a real run in numbers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from moesim.analysis.record import Checked, Count, FileRecord, Fraction, Record, Size
from moesim.analysis.result_file import LayerTime, StepTime, StragglerRatio
from moesim.analysis.scenario_facts import ScenarioFacts, TraceFacts


class _Run(Record):
    device: str
    backend: str
    repeats: Count
    serial: bool


class ExecutionMetrics(Record):
    """Medians over the repeats; times and what needs a network only where ranks ran together."""

    model_config = ConfigDict(extra="allow")  # as of the metrics of a simulation

    step_time_s: StepTime | None = None
    tokens_per_s: float | None = None
    layer_time_s: LayerTime | None = None
    phase_time_s: dict[str, float] = Field(default_factory=dict)
    straggler_ratio: StragglerRatio
    balancedness: float


class RankSeconds(Record):
    """Seconds of a step that a rank spends in each phase that was measured."""

    rank: Count
    seconds: dict[str, Fraction]


class ExecutionResult(FileRecord):
    """``execution.json``."""

    THING: ClassVar = "execution"

    format: Literal["moesim.execution/1"] = "moesim.execution/1"
    ranks: Size
    run: Annotated[dict[str, Any], Checked(_Run)]
    metrics: ExecutionMetrics
    per_rank: Annotated[list[RankSeconds], Field(min_length=1)]
    notes: list[str]
    scenario: ScenarioFacts
    trace: TraceFacts
    provenance: dict[str, Any]
