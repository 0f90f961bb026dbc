"""The same placement with GPUs of a kind exchanged, so that as few experts as possible move.

Axes: E experts, G GPUs, N nodes, P GPUs of a node.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.problem.rules import held_EG
from traces.base.arrays import Ints


def relabelled(problem: Problem, placement: Placement) -> Placement:
    """``placement``, each layer's GPUs renamed towards ``problem.previous``.

    What two GPUs of one node hold may be exchanged where they have the same speed and slots, and likewise
    what two nodes of such GPUs hold: no load and no copy across nodes changes, only the names. Of all such
    exchanges the one with the fewest moves is taken: the best of GPUs for each pair of nodes, then the best
    of nodes (Kuhn, "The Hungarian method", 1955). Where positions are fixed or forbidden, names matter, and
    nothing is exchanged.

    Both GPUs hold the other's experts:

    >>> previous = Placement(np.array([[0, 1, 2, 3]]), np.array([0, 0, 1, 1]), 4, 2, (0,))
    >>> problem = Problem.of([[1, 1, 1, 1]], gpus=2, previous=previous)
    >>> other = Placement(np.array([[2, 3, 1, 0]]), np.array([0, 0, 1, 1]), 4, 2, (0,))
    >>> relabelled(problem, other).slot_expert_LS
    array([[1, 0, 2, 3]], dtype=int16)
    """
    previous = problem.previous
    if previous is None or problem.fixed or problem.forbidden:
        return placement
    slots_of = [np.flatnonzero(placement.slot_gpu_S == gpu) for gpu in range(problem.gpus)]
    slot_expert_LS = placement.slot_expert_LS.copy()
    for row, slot_expert_S in enumerate(placement.slot_expert_LS):
        had, has = held_EG(previous, row), held_EG(placement, row)
        moves_GG = has.T.astype(np.int64) @ (~had).astype(np.int64)
        for gpu, name in enumerate(_names(problem, slots_of, moves_GG)):
            slot_expert_LS[row, slots_of[name]] = slot_expert_S[slots_of[gpu]]
    return replace(placement, slot_expert_LS=slot_expert_LS)


def _names(problem: Problem, slots_of: list[Ints], moves_GG: Ints) -> list[int]:
    """For each GPU the one that is to hold what it holds.

    Args:
        moves_GG: copies that move if the column's GPU holds what the row's does.
    """
    kind_G = np.array(list(zip(problem.speed_G, map(len, slots_of), strict=True)))
    alike_GG = (kind_G[:, None] == kind_G[None]).all(axis=2)
    never = int(moves_GG.sum()) + 1
    cost_GG = np.where(alike_GG, moves_GG, never)
    gpus_N = [np.flatnonzero(problem.node_G == node) for node in range(problem.nodes)]
    cost_NN = np.full((problem.nodes, problem.nodes), never * problem.gpus, dtype=np.int64)
    names: dict[tuple[int, int], Ints] = {}
    for a, from_P in enumerate(gpus_N):
        for b, to_P in enumerate(gpus_N):
            # Where tokens have a node at home, it matters which one an expert is on.
            if len(from_P) == len(to_P) and (a == b or problem.home_T is None):
                cost_PP = cost_GG[np.ix_(from_P, to_P)]
                row_P, column_P = linear_sum_assignment(cost_PP)
                names[a, b] = to_P[column_P]
                cost_NN[a, b] = cost_PP[row_P, column_P].sum()
    name_G = np.empty(problem.gpus, dtype=np.int64)
    for a, b in zip(*linear_sum_assignment(cost_NN), strict=True):
        name_G[gpus_N[a]] = names[int(a), int(b)]
    result: list[int] = name_G.tolist()
    return result
