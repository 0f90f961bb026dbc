"""``result.json`` and ``whatif.json``: one run, or several beside it, in numbers and where they come from."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field

from moesim.analysis.culprit import Culprit, Straggler, culprit
from moesim.analysis.record import Count, FileRecord, Fraction, Record, Size
from moesim.analysis.scenario_facts import ScenarioFacts, TraceFacts

_Positive = Annotated[float, Field(gt=0)]


class StepTime(Record):
    """Seconds of a step; percentiles over steps."""

    mean: _Positive
    p50: float
    p95: float
    p99: float


class LayerTime(Record):
    """Seconds of an MoE layer; the percentile over layers and steps."""

    mean: Fraction
    p95: Fraction


class StragglerRatio(Record):
    """Maximum over mean of the GPUs, averaged over layers and steps."""

    assignments: float
    experts_time: float
    dispatch_bytes: float | None = None


class Memory(Record):
    """Bytes of weights and KV cache of a GPU."""

    max: Fraction
    mean: Fraction


class Rebalancing(Record):
    """How often experts moved in a run, what was sent in all, and by how much that made the mean step longer.

    ``solver_s`` is what of that the solver took.
    """

    rebalances: Count = 0
    moved_experts: Count = 0
    bytes: Fraction = 0.0
    migration_s: float = 0.0
    solver_s: Fraction = 0.0


class Slots(Record):
    """Places for experts, all GPUs together; of a mean layer, micro-batches added up.

    Attributes:
        held: how many there are.
        active: those with tokens, whose weights are read.
        rows: of their GEMMs, each slot's padded as the dispatch lays them out.
    """

    held: Count
    active: Fraction
    rows: Fraction


class Stage(Record):
    """What became of the router's choice after one of several policies.

    Fractions of the wished assignments; None where the trace has no weights, or nothing has a capacity.
    """

    policy: str
    wished: Fraction = 1.0
    kept: Fraction
    rerouted: Fraction
    dropped: Fraction
    added: Fraction
    gate_mass_lost: float | None
    effective_capacity_factor: float | None = None


class Metrics(Record):
    """What a run measured: of a mean step, where nothing else is said; shares as in a :class:`Stage`.

    ``metrics.METRICS`` says how each is computed; one that no code asks for by name needs no field here.
    """

    model_config = ConfigDict(extra="allow")

    step_time_s: StepTime
    tokens_per_s: float
    tokens_per_s_per_gpu: float | None = None
    layer_time_s: LayerTime | None = None
    phase_time_s: dict[str, float]
    straggler_ratio: StragglerRatio
    balancedness: float
    wished: Fraction = 1.0
    kept: Fraction = 1.0
    rerouted: Fraction
    dropped: Fraction
    added: Fraction
    gate_mass_lost: float | None
    effective_capacity_factor: float | None = None
    stages: list[Stage] = Field(default_factory=list)
    cross_node_bytes: Fraction
    in_node_bytes: Fraction = 0.0
    slots: Slots | None = None
    gpu_memory_bytes: Memory
    rebalancing: Rebalancing = Rebalancing()

    def number(self, key: str) -> float | None:
        """A metric that no field declares; None where the file has no number for it."""
        found = (self.model_extra or {}).get(key)
        return found if isinstance(found, int | float) else None


class Attribution(Record):
    """Seconds of a mean step by cause; but for the three parts of imbalance they sum to it.

    T0 is the run as asked; T1 with healthy hardware; then without experts that move; T2 with even work:
    homes (tokens and keys, with the copies that leave there), experts (distinct tokens, assignments, active
    slots) and traffic (bytes of pairs of GPUs that are alike), in this order; T3 also with a free network; T4
    also without launches and fixed costs. A term may be negative, and is shown as it is.
    """

    hardware_s: float
    migration_s: float = 0.0
    imbalance_s: float
    homes_s: float | None = None
    experts_s: float | None = None
    traffic_s: float | None = None
    network_s: float
    overhead_s: float
    ideal_s: float

    @property
    def step_s(self) -> float:
        """All of them together."""
        whole_s = self.hardware_s + self.migration_s + self.imbalance_s
        return whole_s + self.network_s + self.overhead_s + self.ideal_s

    def seconds(self, term: str) -> float:
        """Of a cause, named without its unit."""
        found: float = getattr(self, f"{term}_s")
        return found


class Ceilings(Record):
    """The most seconds of a mean step that can be won, by whom.

    Attributes:
        placements_s: the routing kept, every GPU with the same work (T1 - T2 of the attribution).
        routers_s: also with the routing changed, to even loads of all experts or to the fewest experts that
            hold the assignments, whichever is faster: few experts stream few weights.
    """

    placements_s: float
    routers_s: float


_Ends = Annotated[list[float], Field(min_length=2, max_length=2)]


class Intervals(Record):
    """Between which ends nine of ten draws of the profile's figures lie.

    Attributes:
        attribution: by term, with its unit.
        drawn_step_s: seconds of a mean step of each draw; runs that are compared have the same draws.
    """

    samples: Count
    step_time_s: _Ends
    tokens_per_s: _Ends
    attribution: dict[str, _Ends]
    drawn_step_s: list[_Positive]


class Rebalance(Record):
    """When it was decided, what it moved, and the first step of each layer served with it.

    ``from_step`` is in the order of MoE layers, None where the run ended before the layer's copies arrived.
    """

    step: int
    moved_experts: int
    bytes: float
    placement: str
    layers: list[int]
    from_step: list[int | None]


class Result(FileRecord):
    """``result.json``; ``unseen`` says what transfers were fitted on, where this run is outside of that."""

    THING: ClassVar = "result"

    format: Literal["moesim.result/1"] = "moesim.result/1"
    scenario: ScenarioFacts
    metrics: Metrics
    attribution: Attribution
    ceilings: Ceilings | None = None
    intervals: Intervals | None = None
    rebalances: list[Rebalance] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    unseen: str = ""
    bounds: dict[str, Fraction]
    stragglers: list[Straggler]
    trace: TraceFacts
    provenance: dict[str, Any]

    @property
    def gpus(self) -> int:
        """Of the expert-parallel group."""
        found: int = self.scenario["parallelism"]["ep"]
        return found

    @property
    def mode(self) -> str:
        """Of dispatch."""
        found: str = self.scenario["dispatch"]["mode"]
        return found

    @property
    def culprit(self) -> Culprit | None:
        """The rank that holds up most layers."""
        return culprit(self.stragglers)

    def made(self, **facts: Any) -> Self:
        """With more, or other, entries of the provenance."""
        return self.model_copy(update={"provenance": self.provenance | facts})


class Outcome(Record):
    """One point of a comparison; ``gpus`` and ``payback_steps`` are None where they are not known.

    ``meets`` says whether it meets all targets, where there are any.
    ``mode`` is that of dispatch, ``unseen`` as in a result; both empty where a file does not say.
    """

    vary: dict[str, Any]
    metrics: Metrics
    attribution: Attribution
    culprit: Culprit | None = None
    gpus: Size | None = None
    speedup: _Positive
    speedup_interval: _Ends | None = None
    payback_steps: Fraction | None = None
    meets: bool | None = None
    as_asked: bool = False
    notes: list[str] = Field(default_factory=list)
    unseen: str = ""
    mode: str = ""


class Infeasible(Record):
    """What cannot be, and why: it needs more memory than there is, say."""

    vary: dict[str, Any]
    infeasible: str


Compared = Result | Outcome
"""What stands in a comparison: the scenario itself, or a point."""


class Comparison(FileRecord):
    """``whatif.json``: a scenario and points that differ from it.

    Attributes:
        baseline: of the scenario itself; where that cannot be, of the first point that can.
        infeasible: why the scenario itself cannot be.
        targets: bounds on metrics, as they were asked for.
        faster: of each pair, the scenario first, then the points that ran, in order: the share of draws in
            which the one of the row serves more tokens a second than the one of the column.
    """

    THING: ClassVar = "whatif"

    format: Literal["moesim.whatif/1"] = "moesim.whatif/1"
    baseline: Result
    points: list[Outcome | Infeasible]
    infeasible: str | None = None
    targets: list[str] = Field(default_factory=list)
    faster: list[list[Fraction]] | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        """The points that ran."""
        return [point for point in self.points if isinstance(point, Outcome)]

    @property
    def refused(self) -> list[Infeasible]:
        """What cannot be: the scenario itself, which varies nothing, and points."""
        own = [Infeasible(vary={}, infeasible=self.infeasible)] if self.infeasible is not None else []
        return own + [point for point in self.points if isinstance(point, Infeasible)]

    def made(self, **facts: Any) -> Self:
        """With more, or other, entries of the baseline's provenance."""
        return self.model_copy(update={"baseline": self.baseline.made(**facts)})
