"""Assignments by layer and GPU, over the mean GPU's, and how even slots could make them."""

from __future__ import annotations

import numpy as np

from traces.timeline import PHASES, Timeline, WorkTable


def load_table(timeline: Timeline, gpus: int) -> tuple[np.ndarray, np.ndarray]:
    """Assignments of each GPU in each MoE layer, summed over steps and repeats.

    Returns:
        layers_L: the true indices of layers with expert work; load_LG: float64.
    """
    rows = np.flatnonzero((timeline.phase_N == PHASES.index("experts")) & (timeline.layer_N >= 0))
    layers_L, index_N = np.unique(timeline.layer_N[rows], return_inverse=True)
    flat = index_N * gpus + timeline.rank_N[rows]
    load = np.bincount(flat, timeline.assignments_N[rows], minlength=len(layers_L) * gpus)
    return layers_L, load.reshape(len(layers_L), gpus)


def slot_bound(work: WorkTable, layers_L: np.ndarray, load_LG: np.ndarray) -> np.ndarray:
    """The hottest slot over the mean GPU (axis L): no exchange of slots takes a layer's max below it.

    Never below 1, which is perfect balance.
    """
    rows = np.flatnonzero((work.phase_N == PHASES.index("experts")) & np.isin(work.layer_N, layers_L))
    bound_L = np.ones(len(layers_L))
    if not len(rows):
        return bound_L
    slots = int(work.destination_N[rows].max()) + 1
    flat = np.searchsorted(layers_L, work.layer_N[rows]).astype(np.int64) * slots + work.destination_N[rows]
    # Only slots that occur: their numbers in a file may be far apart.
    used, index_N = np.unique(flat, return_inverse=True)
    load = np.bincount(index_N, work.count_N[rows])
    hottest_L = np.zeros(len(layers_L))
    np.maximum.at(hottest_L, used // slots, load)
    mean_L = load_LG.mean(1)
    np.divide(hottest_L, mean_L, out=bound_L, where=mean_L > 0)
    return np.maximum(bound_L, 1.0)


def over_mean(load_LG: np.ndarray) -> np.ndarray:
    """Load over the layer's mean GPU's (axes L, G); layers without any work count as even."""
    mean_L1 = load_LG.mean(1, keepdims=True)
    relative_LG = np.ones_like(load_LG)
    np.divide(load_LG, mean_L1, out=relative_LG, where=mean_L1 > 0)
    return relative_LG
