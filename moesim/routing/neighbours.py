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
        expert_M: int16, the expert of each pair, unit by unit.
        first_U: int64 [U + 1]: expert_M[first_U[u]] to expert_M[first_U[u + 1]] are those of unit u.
        unit_M: int64, the unit of each pair, expert by expert, ascending in each.
        first_E: int64 [E + 1]: unit_M[first_E[e]] to unit_M[first_E[e + 1]] are those of expert e.
    """

    expert_M: npt.NDArray[np.int16]
    first_U: npt.NDArray[np.int64]
    unit_M: npt.NDArray[np.int64]
    first_E: npt.NDArray[np.int64]


def neighbours(held: Held, reach: str) -> Neighbours:
    """Who shares a ``gpu`` or ``node`` with whom.

    Experts 0 and 1 on GPU 0, experts 2 and 0 on GPU 1:

    >>> gpus_EG = np.array([[True, True], [True, False], [False, True]])
    >>> found = neighbours(Held(gpus_EG, np.zeros(2, np.int32)), "gpu")
    >>> found.expert_M.tolist(), found.first_U.tolist(), found.unit_M.tolist(), found.first_E.tolist()
    ([0, 1, 0, 2], [0, 2, 4], [0, 1, 0, 1], [0, 2, 3, 4])
    """
    on_EU = held.gpus_EG if reach == "gpu" else on_nodes(held)
    expert_M, unit_M = np.nonzero(on_EU)
    return Neighbours(
        expert_M[np.argsort(unit_M, kind="stable")].astype(np.int16),
        _starts(unit_M, on_EU.shape[1]),
        unit_M,
        _starts(expert_M, on_EU.shape[0]),
    )


def on_nodes(held: Held) -> npt.NDArray[np.bool_]:
    """[E, N]: whether a GPU of a node holds an expert."""
    on_EN = np.zeros((len(held.gpus_EG), int(held.node_G.max()) + 1), np.bool_)
    # Five times as fast as nonzero of a matrix.
    expert_N, gpu_N = np.divmod(np.flatnonzero(held.gpus_EG), len(held.node_G))
    on_EN[expert_N, held.node_G[gpu_N]] = True
    return on_EN


def _starts(of_M: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.int64]:
    """[count + 1]: where each number's entries begin once they are sorted."""
    return np.concatenate([[0], np.cumsum(np.bincount(of_M, minlength=count))])
