"""The metrics of a run, from its timeline."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.analysis.critical_path import critical_path
from moesim.analysis.cube import Cube, max_over_mean
from placement.judging.balancedness import sglang
from traces.timeline import PHASES, Timeline

FloatArray = NDArray[np.float64]


def timeline_metrics(timeline: Timeline, tokens_per_step: float) -> dict[str, Any]:
    """The metrics that spans alone determine, in the form of ``result.json``.

    Args:
        timeline: one run, one repeat.
        tokens_per_step: of all ranks together.
    """
    cube = Cube.of(timeline)
    step_s = step_times(timeline)
    layer_s = layer_times(timeline, cube)
    path_s = np.mean([critical_path(timeline, step) for step in range(cube.steps)], axis=0)
    assignments_WLG = cube.values("experts", timeline.assignments_N)
    return {
        "step_time_s": {
            "mean": float(step_s.mean()),
            **{f"p{q}": float(np.percentile(step_s, q)) for q in (50, 95, 99)},
        },
        "tokens_per_s": tokens_per_step / float(step_s.mean()),
        "layer_time_s": {"mean": float(layer_s.mean()), "p95": float(np.percentile(layer_s, 95))},
        "phase_time_s": dict(zip(PHASES, path_s.tolist(), strict=True)),
        "straggler_ratio": {
            "assignments": max_over_mean(assignments_WLG),
            "experts_time": max_over_mean(cube.seconds("experts")),
            "dispatch_bytes": max_over_mean(cube.values("dispatch", timeline.bytes_N)),
        },
        "balancedness": sglang(assignments_WLG),
    }


def step_times(timeline: Timeline) -> FloatArray:
    """Seconds of each step: from its first start to its last end."""
    steps = int(timeline.step_N.max()) + 1
    start, end = np.full(steps, np.inf), np.full(steps, -np.inf)
    np.minimum.at(start, timeline.step_N, timeline.start_s_N)
    np.maximum.at(end, timeline.step_N, timeline.end_s_N)
    seconds: FloatArray = end - start
    return seconds


def layer_times(timeline: Timeline, cube: Cube) -> FloatArray:
    """[W, L] seconds of each MoE layer: from the end of the layer before it to its own, on the last rank."""
    inside = np.flatnonzero(timeline.layer_N >= 0)
    layers = int(timeline.layer_N.max()) + 1
    end = np.full((cube.steps, layers + 1), -np.inf)
    np.maximum.at(end, (timeline.step_N[inside], timeline.layer_N[inside] + 1), timeline.end_s_N[inside])
    # What comes before all layers, such as experts that move, is in none of them.
    start = np.full(cube.steps, np.inf)
    np.minimum.at(start, timeline.step_N[inside], timeline.start_s_N[inside])
    end[:, 0] = start
    # A layer without spans ends when the one before it does.
    end = np.maximum.accumulate(end, axis=1)
    layer_s: FloatArray = np.diff(end, axis=1)[:, cube.layers]
    return layer_s
