"""How long steps and layers take, from the spans of a timeline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.analysis.cube import Cube
from traces.timeline import Timeline

FloatArray = NDArray[np.float64]


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
