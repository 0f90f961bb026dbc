"""Every metric, declared once: its key in ``metrics``, how it is computed, and how a reader sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.analysis.attribution import Counterfactuals
from moesim.analysis.critical_path import critical_path
from moesim.analysis.cube import Cube, layer_times, ratios, step_times
from moesim.analysis.rebalancing import rebalancing_metrics
from moesim.analysis.result_file import Metrics, Rebalancing, Stage, StepTime
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
    """Some steps of one run, one repeat."""

    timeline: Timeline

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


class Columns:
    """What the metrics keep of each step: so little that steps may be many."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[FloatArray]] = {}

    def add(self, timeline: Timeline) -> None:
        """Add the steps of one run, one repeat."""
        spans = Spans(timeline)
        for metric in METRICS:
            if metric.of_steps is not None:
                self._blocks.setdefault(metric.key, []).append(metric.of_steps.column(spans))

    @property
    def step_s(self) -> float:
        """Mean seconds of a step."""
        return float(np.concatenate(self._blocks["step_time_s"]).mean())

    def metrics(self, tokens_per_step: float) -> dict[str, Any]:
        """The metrics that spans alone determine, in the form of ``result.json``.

        Args:
            tokens_per_step: of all ranks together.
        """
        return {
            metric.key: metric.of_steps.summary(np.concatenate(self._blocks[metric.key]), tokens_per_step)
            for metric in METRICS
            if metric.of_steps is not None
        }


@dataclass(frozen=True)
class OfSteps:
    """A metric that spans alone determine.

    Attributes:
        column: what is kept of each step, its first axis.
        summary: of all steps, in the form of ``result.json``; told the tokens of a mean step, too.
    """

    column: Callable[[Spans], FloatArray]
    summary: Callable[[FloatArray, float], Any]


@dataclass(frozen=True)
class Explained:
    """A simulated run, what was kept of its steps, and the same steps without the causes of their time."""

    run: Run
    columns: Columns
    without: Counterfactuals


@dataclass(frozen=True)
class Figure:
    """How a reader sees a metric.

    Attributes:
        number: None where it says nothing.
        note: says what the number is, beside it.
    """

    label: str
    unit: Unit
    number: Callable[[Metrics], float | None]
    note: Callable[[Metrics], str]


@dataclass(frozen=True)
class Metric:
    """One entry of ``metrics``.

    Attributes:
        key: in ``result.json``. A key that :class:`Metrics` lacks is kept there all the same.
        of_steps, of_run: computes it, in the form of ``result.json``; an empty list is not written. What
            spans alone determine is a metric of real runs, too.
        figure: what tables and the page show of it among their key figures, if anything.
    """

    key: str
    of_steps: OfSteps | None = None
    of_run: Callable[[Explained], Any] | None = None
    figure: Figure | None = None


def timeline_metrics(timeline: Timeline, tokens_per_step: float) -> dict[str, Any]:
    """The metrics that spans alone determine, in the form of ``result.json``.

    Args:
        timeline: one run, one repeat.
        tokens_per_step: of all ranks together.
    """
    columns = Columns()
    columns.add(timeline)
    return columns.metrics(tokens_per_step)


def run_metrics(done: Explained) -> Metrics:
    """All metrics of a simulated run."""
    values = done.columns.metrics(done.run.tokens_per_step)
    values |= {metric.key: metric.of_run(done) for metric in METRICS if metric.of_run is not None}
    return Metrics.model_validate({key: value for key, value in values.items() if value != []})


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


def _step_time(step_s_W: FloatArray, _: float) -> dict[str, float]:
    percentiles = {f"p{q}": float(np.percentile(step_s_W, q)) for q in (50, 95, 99)}
    return {"mean": float(step_s_W.mean()), **percentiles}


def _layer_time(layer_s_WL: FloatArray, _: float) -> dict[str, float]:
    return {"mean": float(layer_s_WL.mean()), "p95": float(np.percentile(layer_s_WL, 95))}


def _paths(spans: Spans) -> FloatArray:
    return np.array([critical_path(spans.timeline, step) for step in spans.cube.step_W.tolist()])


def _phase_time(path_s_WP: FloatArray, _: float) -> dict[str, float]:
    return dict(zip(PHASES, path_s_WP.mean(axis=0).tolist(), strict=True))


_RATIOS = ("assignments", "experts_time", "dispatch_bytes")


def _straggler_ratios(spans: Spans) -> FloatArray:
    """[W, 3]: max over mean of each of ``_RATIOS``, the mean over layers."""
    cube = spans.cube
    bytes_WLG = cube.values("dispatch", spans.timeline.bytes_N)
    values = (spans.assignments_WLG, cube.seconds("experts"), bytes_WLG)
    return np.stack([ratios(each_WLG).mean(axis=1) for each_WLG in values], axis=1)


def _straggler_ratio(ratio_WX: FloatArray, _: float) -> dict[str, float]:
    return dict(zip(_RATIOS, ratio_WX.mean(axis=0).tolist(), strict=True))


def _per_gpu(done: Explained) -> float:
    return done.run.tokens_per_step / done.columns.step_s / done.run.deployment.scenario.parallelism.ep


def _share(name: str) -> Callable[[Explained], float | None]:
    """Of the last of the routing policies."""
    return lambda done: routing_metrics(done.run.tallies[-1])[name]


def _stages(done: Explained) -> list[dict[str, Any]]:
    """Of each of several policies; of one the other metrics say all."""
    each = zip(done.run.deployment.policies, done.run.tallies, strict=True)
    stages = [{"policy": policy.name} | routing_metrics(tally) for policy, tally in each]
    return stages if len(stages) > 1 else []


def _slots(done: Explained) -> dict[str, float]:
    run, scenario = done.run, done.run.deployment.scenario
    layers = run.steps * len(scenario.model.moe_layers)
    return {
        "held": int((run.deployment.placement.slot_expert_LS >= 0).sum(axis=1).max()),
        "active": run.active_slots / layers,
        "rows": run.rows / layers,
    }


def _memory(done: Explained) -> dict[str, float]:
    total_G = done.run.deployment.memory.total_G
    return {"max": float(total_G.max()), "mean": float(total_G.mean())}


def _changed(key: str, of: str) -> Figure:
    """A share of what policies change, where one changes anything."""

    def number(found: Metrics) -> float | None:
        share: float | None = getattr(found, key)
        return share if found.dropped or found.rerouted else None

    return Figure(key.replace("_", " "), "share", number, _note(of))


def _ratio_note(found: Metrics) -> str:
    return f"max / mean of assignments; of expert time {found.straggler_ratio.experts_time:.3f}"


def _memory_note(found: Metrics) -> str:
    return f"weights and KV cache of the fullest GPU; mean {format_bytes(found.gpu_memory_bytes.mean)}"


def _times(found: StepTime) -> str:
    return f"p95 {format_seconds(found.p95)}, p99 {format_seconds(found.p99)}"


def _sent(found: Rebalancing) -> str:
    sent = f"{found.moved_experts:,} copies sent, {format_bytes(found.bytes)}"
    return f"{sent}; {format_seconds(found.migration_s)} a step"


def _note(text: str) -> Callable[[Metrics], str]:
    return lambda _: text


_SHARES: Final = [key for key in Stage.model_fields if key != "policy"]
_CHANGED: Final = {
    "rerouted": _changed("rerouted", "of the assignments"),
    "dropped": _changed("dropped", "of the assignments"),
    "gate_mass_lost": _changed("gate_mass_lost", "of the gate weights"),
}

METRICS: tuple[Metric, ...] = (
    Metric(
        "step_time_s",
        OfSteps(lambda spans: spans.step_s, _step_time),
        figure=Figure("step time", "s", lambda m: m.step_time_s.mean, lambda m: _times(m.step_time_s)),
    ),
    Metric(
        "tokens_per_s",
        OfSteps(lambda spans: spans.step_s, lambda step_s_W, tokens: tokens / float(step_s_W.mean())),
        figure=Figure(
            "throughput",
            "1/s",
            lambda m: m.tokens_per_s,
            _note("tokens a second, all GPUs together"),
        ),
    ),
    Metric("tokens_per_s_per_gpu", of_run=_per_gpu),
    Metric("layer_time_s", OfSteps(lambda spans: layer_times(spans.timeline, spans.cube), _layer_time)),
    Metric("phase_time_s", OfSteps(_paths, _phase_time)),
    Metric(
        "straggler_ratio",
        OfSteps(_straggler_ratios, _straggler_ratio),
        figure=Figure("straggler ratio", "ratio", lambda m: m.straggler_ratio.assignments, _ratio_note),
    ),
    Metric(
        "balancedness",
        OfSteps(
            lambda spans: np.array([sglang(each_LG) for each_LG in spans.assignments_WLG]),
            lambda balanced_W, _: float(balanced_W.mean()),
        ),
        figure=Figure(
            "balancedness",
            "ratio",
            lambda m: m.balancedness,
            _note("mean / max of assignments; 1 is perfect"),
        ),
    ),
    *(Metric(key, of_run=_share(key), figure=_CHANGED.get(key)) for key in _SHARES),
    Metric("stages", of_run=_stages),
    Metric(
        "cross_node_bytes",
        of_run=lambda done: done.run.cross_node_bytes / done.run.steps,
        figure=Figure(
            "between nodes", "B", lambda m: m.cross_node_bytes or None, _note("a step, all GPUs together")
        ),
    ),
    Metric(
        "in_node_bytes",
        of_run=lambda done: done.run.in_node_bytes / done.run.steps,
    ),
    Metric("slots", of_run=_slots),
    Metric(
        "gpu_memory_bytes",
        of_run=_memory,
        figure=Figure("memory", "B", lambda m: m.gpu_memory_bytes.max, _memory_note),
    ),
    Metric(
        "rebalancing",
        of_run=lambda done: rebalancing_metrics(
            done.run, done.without.terms(done.columns.step_s).migration_s
        ),
        figure=Figure(
            "rebalanced", "times", lambda m: m.rebalancing.rebalances or None, lambda m: _sent(m.rebalancing)
        ),
    ),
)
"""In the order of ``result.json``. A new metric is one entry here, and what computes it."""
