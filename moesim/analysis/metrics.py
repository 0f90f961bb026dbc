"""Every metric, declared once: its key in ``metrics``, how it is computed, and how a reader sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.analysis.critical_path import critical_path
from moesim.analysis.cube import Cube, max_over_mean
from moesim.analysis.rebalancing import rebalancing_metrics
from moesim.analysis.result_file import Metrics, Result
from moesim.analysis.times import layer_times, step_times
from moesim.simulation.run import Run
from moesim.simulation.tally import Tally
from moesim.units import format_bytes, format_seconds
from placement.judging.balancedness import sglang
from traces.timeline import PHASES, Timeline

FloatArray = NDArray[np.float64]

Unit = Literal["s", "B", "1/s", "share", "ratio", "times"]
"""Of a figure, which says how it is written; ``share`` is a fraction, ``times`` a count of events."""


@dataclass(frozen=True)
class Spans:
    """One run, one repeat; ``tokens_per_step`` of all ranks together."""

    timeline: Timeline
    tokens_per_step: float

    @cached_property
    def cube(self) -> Cube:
        """Of the timeline."""
        return Cube.of(self.timeline)

    @cached_property
    def step_s(self) -> FloatArray:
        """[W] seconds."""
        return step_times(self.timeline)

    @cached_property
    def assignments_WLG(self) -> FloatArray:
        """That each rank's experts serve."""
        return self.cube.values("experts", self.timeline.assignments_N)


class Figure(NamedTuple):
    """A number that a reader sees, and what to know of it."""

    label: str
    value: float
    unit: Unit
    note: str


@dataclass(frozen=True)
class Metric:
    """One entry of ``metrics``.

    Attributes:
        key: in ``result.json``. A key that :class:`Metrics` lacks is kept there all the same.
        of_spans, of_run: computes it, in the form of ``result.json``; an empty list is not written. What
            spans alone determine is a metric of real runs, too.
        label: what tables and the page call it; without one they do not show it as a figure.
        unit: of the shown number.
        number: which number of the value is shown; none where it is None.
        note: says what the number is, beside it.
        where: whether a result's figure says anything.
    """

    key: str
    of_spans: Callable[[Spans], Any] | None = None
    of_run: Callable[[Run], Any] | None = None
    label: str = ""
    unit: Unit = "ratio"
    number: Callable[[Any], float | None] = lambda value: value
    note: Callable[[Metrics], str] = lambda _: ""
    where: Callable[[Result], bool] = lambda _: True


def timeline_metrics(timeline: Timeline, tokens_per_step: float) -> dict[str, Any]:
    """The metrics that spans alone determine, in the form of ``result.json``.

    Args:
        timeline: one run, one repeat.
        tokens_per_step: of all ranks together.
    """
    spans = Spans(timeline, tokens_per_step)
    return {metric.key: metric.of_spans(spans) for metric in METRICS if metric.of_spans is not None}


def run_metrics(done: Run) -> Metrics:
    """All metrics of a simulated run."""
    values = timeline_metrics(done.timeline, done.tokens / done.deployment.scenario.workload.steps)
    values |= {metric.key: metric.of_run(done) for metric in METRICS if metric.of_run is not None}
    return Metrics.model_validate({key: value for key, value in values.items() if value != []})


def figures(result: Result) -> list[Figure]:
    """What a reader sees of the metrics, in the order of ``METRICS``."""
    found = []
    for metric in METRICS:
        number = metric.number(getattr(result.metrics, metric.key, None)) if metric.label else None
        # A metric that no class declares may be of any type in a file.
        if isinstance(number, int | float) and metric.where(result):
            found.append(Figure(metric.label, number, metric.unit, metric.note(result.metrics)))
    return found


def routing_metrics(tally: Tally) -> dict[str, float | None]:
    """Fractions of the wished assignments; None where the trace has no weights, or nothing has a capacity."""
    weighted = tally.weighted and tally.gate_mass > 0
    shares: dict[str, float | None] = {
        name: getattr(tally, name) / tally.wished
        for name in ("wished", "kept", "rerouted", "dropped", "added")
    }
    shares["gate_mass_lost"] = tally.gate_mass_lost / tally.gate_mass if weighted else None
    if tally.kept == tally.wished:
        shares["gate_mass_lost"] = 0.0
    shares["effective_capacity_factor"] = tally.room / tally.limited if tally.limited else None
    return shares


def _step_time(spans: Spans) -> dict[str, float]:
    percentiles = {f"p{q}": float(np.percentile(spans.step_s, q)) for q in (50, 95, 99)}
    return {"mean": float(spans.step_s.mean()), **percentiles}


def _layer_time(spans: Spans) -> dict[str, float]:
    layer_s = layer_times(spans.timeline, spans.cube)
    return {"mean": float(layer_s.mean()), "p95": float(np.percentile(layer_s, 95))}


def _phase_time(spans: Spans) -> dict[str, float]:
    path_s = np.mean([critical_path(spans.timeline, step) for step in range(spans.cube.steps)], axis=0)
    return dict(zip(PHASES, path_s.tolist(), strict=True))


def _straggler_ratio(spans: Spans) -> dict[str, float]:
    cube = spans.cube
    return {
        "assignments": max_over_mean(spans.assignments_WLG),
        "experts_time": max_over_mean(cube.seconds("experts")),
        "dispatch_bytes": max_over_mean(cube.values("dispatch", spans.timeline.bytes_N)),
    }


def _share(name: str) -> Callable[[Run], float | None]:
    """Of the last of the routing policies."""
    return lambda done: routing_metrics(done.tallies[-1])[name]


def _stages(done: Run) -> list[dict[str, Any]]:
    """Of each of several policies; of one the other metrics say all."""
    each = zip(done.deployment.policies, done.tallies, strict=True)
    stages = [{"policy": policy.name} | routing_metrics(tally) for policy, tally in each]
    return stages if len(stages) > 1 else []


def _memory(done: Run) -> dict[str, float]:
    total_G = done.deployment.memory.total_G
    return {"max": float(total_G.max()), "mean": float(total_G.mean())}


def _changes_routing(result: Result) -> bool:
    return result.metrics.dropped > 0 or result.metrics.rerouted > 0


METRICS: Final = (
    Metric(
        "step_time_s",
        _step_time,
        label="step time",
        unit="s",
        number=lambda value: value.mean,
        note=lambda each: (
            f"p95 {format_seconds(each.step_time_s.p95)}, p99 {format_seconds(each.step_time_s.p99)}"
        ),
    ),
    Metric(
        "tokens_per_s",
        lambda spans: spans.tokens_per_step / float(spans.step_s.mean()),
        label="throughput",
        unit="1/s",
        note=lambda _: "tokens a second, all GPUs of the group together",
    ),
    Metric("layer_time_s", _layer_time),
    Metric("phase_time_s", _phase_time),
    Metric(
        "straggler_ratio",
        _straggler_ratio,
        label="straggler ratio",
        number=lambda value: value.assignments,
        note=lambda each: (
            f"max / mean of assignments; of expert time {each.straggler_ratio.experts_time:.3f}"
        ),
    ),
    Metric(
        "balancedness",
        lambda spans: sglang(spans.assignments_WLG),
        label="balancedness",
        note=lambda _: "mean / max of assignments per GPU; 1 is perfect",
    ),
    Metric("wished", of_run=_share("wished")),
    Metric("kept", of_run=_share("kept")),
    Metric(
        "rerouted",
        of_run=_share("rerouted"),
        label="rerouted",
        unit="share",
        note=lambda _: "of the assignments",
        where=_changes_routing,
    ),
    Metric(
        "dropped",
        of_run=_share("dropped"),
        label="dropped",
        unit="share",
        note=lambda _: "of the assignments",
        where=_changes_routing,
    ),
    Metric("added", of_run=_share("added")),
    Metric(
        "gate_mass_lost",
        of_run=_share("gate_mass_lost"),
        label="gate mass lost",
        unit="share",
        note=lambda _: "of the gate weights, with what was dropped",
        where=_changes_routing,
    ),
    Metric("effective_capacity_factor", of_run=_share("effective_capacity_factor")),
    Metric("stages", of_run=_stages),
    Metric(
        "cross_node_bytes",
        of_run=lambda done: done.cross_node_bytes / done.deployment.scenario.workload.steps,
        label="between nodes",
        unit="B",
        note=lambda _: "a step, all GPUs together",
        where=lambda result: result.scenario["cluster"]["nodes"] > 1,
    ),
    Metric(
        "gpu_memory_bytes",
        of_run=_memory,
        label="memory",
        unit="B",
        number=lambda value: value.max,
        note=lambda each: (
            f"weights and KV cache of the fullest GPU; mean {format_bytes(each.gpu_memory_bytes.mean)}"
        ),
    ),
    Metric(
        "rebalancing",
        of_run=rebalancing_metrics,
        label="rebalanced",
        unit="times",
        number=lambda value: value.rebalances,
        note=lambda each: (
            f"{each.rebalancing.moved_experts:,} copies sent, {format_bytes(each.rebalancing.bytes)}; "
            f"{format_seconds(each.rebalancing.migration_s)} a step"
        ),
        where=lambda result: result.metrics.rebalancing.rebalances > 0,
    ),
)
"""In the order of ``result.json``. A new metric is one entry here, and what computes it."""
