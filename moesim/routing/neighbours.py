"""Experts that share a GPU or a node.

Axes: E logical experts, G GPUs, N nodes, U units (GPUs or nodes), M pairs of a unit and an expert on it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.routing.policy import Held


class Neighbours(NamedTuple):
    """Experts unit by unit, ascending in each. An expert with replicas in several units stands in each once.

    Attributes:
        expert_M: int16, the expert of each pair.
        unit_M: int64, its unit.
        first_U: int64 [U + 1]: pairs first_U[u] to first_U[u + 1] are those of unit u.
        pair_M: int64: pairs expert by expert, ascending in each.
        first_E: int64 [E + 1]: pair_M[first_E[e]] to pair_M[first_E[e + 1]] are those of expert e.
    """

    expert_M: npt.NDArray[np.int16]
    unit_M: npt.NDArray[np.int64]
    first_U: npt.NDArray[np.int64]
    pair_M: npt.NDArray[np.int64]
    first_E: npt.NDArray[np.int64]


def neighbours(held: Held, reach: str) -> Neighbours:
    """Who shares a ``gpu`` or ``node`` with whom.

    Experts 0 and 1 on GPU 0, experts 2 and 0 on GPU 1:

    >>> gpus_EG = np.array([[True, True], [True, False], [False, True]])
    >>> found = neighbours(Held(gpus_EG, np.zeros(2, np.int32)), "gpu")
    >>> found.expert_M.tolist(), found.first_U.tolist(), found.pair_M.tolist(), found.first_E.tolist()
    ([0, 1, 0, 2], [0, 2, 4], [0, 2, 1, 3], [0, 2, 3, 4])
    """
    on_EU = held.gpus_EG if reach == "gpu" else on_nodes(held)
    unit_M, expert_M = np.nonzero(on_EU.T)
    return Neighbours(
        expert_M.astype(np.int16),
        unit_M,
        _starts(on_EU.sum(axis=0)),
        np.argsort(expert_M, kind="stable"),
        _starts(on_EU.sum(axis=1)),
    )


def on_nodes(held: Held) -> npt.NDArray[np.bool_]:
    """[E, N]: whether a GPU of a node holds an expert."""
    on_EN = np.zeros((len(held.gpus_EG), int(held.node_G.max()) + 1), np.bool_)
    expert_N, gpu_N = np.nonzero(held.gpus_EG)
    on_EN[expert_N, held.node_G[gpu_N]] = True
    return on_EN


def _starts(count_U: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(count_U)])
