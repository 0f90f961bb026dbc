"""Exchanging copies inside nodes until no GPU's load is above its limit.

Axes as in :mod:`placement.gathering`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.gathering import Layer, exchange, loads, may_hold
from traces.jit import jit

Ints = npt.NDArray[np.int64]


@jit
def level(layer: Layer, gpu_C: Ints, node_G: Ints) -> bool:
    """Let the GPU furthest above its limit exchange a copy with another of its node, again and again.

    Each time it is the exchange after which the larger of the two is lowest. ``gpu_C`` changes in place.

    Returns:
        whether all are under their limits at last.
    """
    load_WG, held_EG = loads(layer, gpu_C)
    while True:
        worst, most = -1, 1.0
        for gpu in range(len(layer.speed_G)):
            if _filled(layer, load_WG, gpu) > most:
                worst, most = gpu, _filled(layer, load_WG, gpu)
        if worst < 0:
            return True
        best, out, back = most * (1.0 - 1e-9), -1, -1
        for copy in range(len(gpu_C)):
            if gpu_C[copy] != worst:
                continue
            for other in range(len(gpu_C)):
                gpu = gpu_C[other]
                if gpu == worst or node_G[gpu] != node_G[worst]:
                    continue
                after = _after(layer, load_WG, gpu_C, copy, other)
                if after < best and may_hold(layer, gpu_C, held_EG, copy, other):
                    best, out, back = after, copy, other
        if out < 0:
            return False
        exchange(layer, gpu_C, load_WG, held_EG, out, back)


@jit
def _filled(layer: Layer, load_WG: npt.NDArray[np.float64], gpu: int) -> float:
    """Load of a GPU over its limit, in the worst window."""
    most = 0.0
    for window in range(len(load_WG)):
        most = max(most, load_WG[window, gpu] / (layer.limit_W[window] * layer.speed_G[gpu]))
    return most


@jit
def _after(layer: Layer, load_WG: npt.NDArray[np.float64], gpu_C: Ints, copy: int, other: int) -> float:
    """The larger of what two GPUs have of their limits after an exchange, in the worst window."""
    here, there = gpu_C[copy], gpu_C[other]
    most = 0.0
    for window in range(len(load_WG)):
        more = layer.cost_WC[window, other] - layer.cost_WC[window, copy]
        limit = layer.limit_W[window]
        most = max(most, (load_WG[window, here] + more) / (limit * layer.speed_G[here]))
        most = max(most, (load_WG[window, there] - more) / (limit * layer.speed_G[there]))
    return most
