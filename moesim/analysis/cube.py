"""A timeline as dense arrays: one value for each step, MoE layer and rank, or for each step or layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from traces.timeline import PHASES, Timeline, WorkTable

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Cube:
    """The MoE layers of one run and repeat. W steps, which may leave out others, L MoE layers, G ranks.

    Attributes:
        layers: true index of each MoE layer: those with a span of phase ``experts``.
        step_W: the number of each step.
    """

    timeline: Timeline
    step_W: NDArray[np.int32]
    ranks: int
    layers: NDArray[np.int32]

    @classmethod
    def of(cls, timeline: Timeline) -> Cube:
        """The cube of a timeline."""
        experts = timeline.phase_N == PHASES.index("experts")
        layers = np.unique(timeline.layer_N[experts])
        return cls(timeline, np.unique(timeline.step_N), int(timeline.rank_N.max()) + 1, layers)

    @property
    def steps(self) -> int:
        """W."""
        return len(self.step_W)

    def _cell_N(self, step_N: NDArray[np.int32], layer_N: NDArray[np.int32]) -> NDArray[np.int64]:
        """The first of the cells of a step and a layer."""
        step, layer = np.searchsorted(self.step_W, step_N), np.searchsorted(self.layers, layer_N)
        return (step.astype(np.int64) * len(self.layers) + layer) * self.ranks

    def micro_batches(self) -> list[Cube]:
        """The same cells, with the spans of each micro-batch alone."""
        batch_N = self.timeline.micro_batch_N
        numbers = range(int(batch_N.max(initial=-1)) + 1)
        return [replace(self, timeline=self.timeline.select(batch_N == number)) for number in numbers]

    def values(self, phase: str, column: NDArray[np.generic]) -> FloatArray:
        """[W, L, G]: the sum of a column over the spans of a phase."""
        timeline = self.timeline
        chosen = np.flatnonzero(
            (timeline.phase_N == PHASES.index(phase)) & np.isin(timeline.layer_N, self.layers)
        )
        cell = self._cell_N(timeline.step_N[chosen], timeline.layer_N[chosen])
        total = np.bincount(
            cell + timeline.rank_N[chosen],
            column[chosen].astype(np.float64),
            minlength=self.steps * len(self.layers) * self.ranks,
        )
        return total.astype(np.float64).reshape(self.steps, len(self.layers), self.ranks)

    def seconds(self, phase: str) -> FloatArray:
        """[W, L, G]: durations of a phase."""
        return self.values(phase, self.timeline.end_s_N - self.timeline.start_s_N)

    def active_slots(self, slots: WorkTable, slot_gpu_S: NDArray[np.int32]) -> FloatArray:
        """[W, L, G]: slots that got tokens."""
        cell = self._cell_N(slots.step_N, slots.layer_N)
        total = np.bincount(
            cell + slot_gpu_S[slots.destination_N], minlength=self.steps * len(self.layers) * self.ranks
        )
        return total.reshape(self.steps, len(self.layers), self.ranks).astype(np.float64)


def max_over_mean(values_XG: FloatArray) -> float:
    """Mean over X of max / mean over ranks; rows without any work count as even.

    >>> max_over_mean(np.array([[1.0, 3.0], [0.0, 0.0]]))
    1.25
    """
    return float(ratios(values_XG).mean())


def ratios(values_XG: FloatArray) -> FloatArray:
    """[X]: max / mean over ranks; 1 where nothing was done."""
    mean_X = values_XG.mean(axis=-1)
    ratio_X = np.ones(mean_X.shape)
    np.divide(values_XG.max(axis=-1), mean_X, out=ratio_X, where=mean_X > 0)
    return ratio_X


def step_times(timeline: Timeline) -> FloatArray:
    """Seconds of each step: from its first start to its last end."""
    step_W, at_N = np.unique(timeline.step_N, return_inverse=True)
    start, end = np.full(len(step_W), np.inf), np.full(len(step_W), -np.inf)
    np.minimum.at(start, at_N, timeline.start_s_N)
    np.maximum.at(end, at_N, timeline.end_s_N)
    seconds: FloatArray = end - start
    return seconds


def layer_times(timeline: Timeline, cube: Cube) -> FloatArray:
    """[W, L] seconds of each MoE layer: from the end of the layer before it to its own, on the last rank."""
    inside = np.flatnonzero(timeline.layer_N >= 0)
    layers = int(timeline.layer_N.max()) + 1
    end = np.full((cube.steps, layers + 1), -np.inf)
    at_N = np.searchsorted(cube.step_W, timeline.step_N[inside])
    np.maximum.at(end, (at_N, timeline.layer_N[inside] + 1), timeline.end_s_N[inside])
    # What comes before all layers, such as experts that move, is in none of them.
    start = np.full(cube.steps, np.inf)
    np.minimum.at(start, at_N, timeline.start_s_N[inside])
    end[:, 0] = start
    # A layer without spans ends when the one before it does.
    end = np.maximum.accumulate(end, axis=1)
    layer_s: FloatArray = np.diff(end, axis=1)[:, cube.layers]
    return layer_s
