"""What a placement costs: the objective of a problem, computed from scratch, for every solver alike.

Axes as in :mod:`placement.problem.problem`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.problem.objective import Objective
from placement.problem.placement import EMPTY, Placement
from placement.problem.problem import Problem
from placement.problem.rules import moves_L
from traces.base.arrays import Floats


def cost_L(problem: Problem, placement: Placement) -> Floats:
    """float64 [L], the objective of each layer; that the rules are obeyed is not asked.

    Two GPUs, expert 0 on both: 3 + 2 tokens on the first, 3 + 1 on the second.

    >>> problem = Problem.of([[6, 2, 1]], gpus=2, slots=4)
    >>> placement = Placement(np.array([[0, 1, 0, 2]]), np.array([0, 0, 1, 1]), 3, 2, (0,))
    >>> cost_L(problem, placement)
    array([5.])
    """
    objective = problem.objective
    cost_WL = gpu_cost_WLG(problem, placement).max(axis=2)
    if objective.per_copy > 0:
        cost_WL = cost_WL + objective.per_copy * copies_WL(problem, placement)
    total_L: Floats = over_windows(objective, cost_WL)
    if objective.per_move > 0:
        total_L = total_L + objective.per_move * moves_L(problem, placement)
    return total_L


def over_windows(objective: Objective, cost_WL: Floats) -> Floats:
    """float64 [L], the worst window or the mean."""
    total_L: Floats = cost_WL.max(axis=0) if objective.worst_window else cost_WL.mean(axis=0)
    return total_L


def gpu_cost_WLG(problem: Problem, placement: Placement) -> Floats:
    """float64 [W, L, G], the objective's part of each GPU: its copies' costs by its speed."""
    each_WLE = copy_cost(problem, placement.replicas_LE)
    cost_WLG: Floats = np.stack([placement.gpu_sum_LG(each_LE) for each_LE in each_WLE]) / problem.speed_G
    return cost_WLG


def copy_cost(problem: Problem, replicas: npt.ArrayLike) -> Floats:
    """float64 [W, L, E], what each of an expert's copies costs its GPU, at speed 1.

    One of r copies gets load / r tokens. With tokens that arrive independently (Poisson), an expert that
    gets one of a batch with probability p has a copy that does with probability 1 − (1 − p)^(1 / r).

    Args:
        replicas: [L, E] copies of each expert, or one number for all.
    """
    replicas_LE = np.asarray(replicas, dtype=np.float64)
    cost_WLE = problem.objective.per_token * problem.load_WLE / replicas_LE
    if problem.objective.per_active > 0:
        assert problem.active_WLE is not None  # the problem has checked it
        quiet_WLE = (1.0 - problem.active_WLE) ** (1.0 / replicas_LE)
        cost_WLE = cost_WLE + problem.objective.per_active * (1.0 - quiet_WLE)
    return cost_WLE


def copies_WL(problem: Problem, placement: Placement) -> Floats:
    """float64 [W, L], tokens sent to other nodes than their home: of each window, from the sample's mean."""
    assert problem.sample_TLK is not None  # the problem has checked it
    top_k = problem.sample_TLK.shape[2]
    tokens_WL = problem.load_WLE.sum(axis=2) / top_k
    crossing_WL: Floats = tokens_WL * foreign_nodes_L(problem, placement)
    return crossing_WL


def foreign_nodes_L(problem: Problem, placement: Placement) -> Floats:
    """float64 [L], the mean of :func:`foreign_nodes_T` in each layer."""
    rows = range(len(problem.layers))
    return np.array([foreign_nodes_T(problem, placement, row).mean() for row in rows])


def foreign_nodes_T(problem: Problem, placement: Placement, row: int) -> Floats:
    """float64 [T], on how many nodes other than its home a sampled token is expected to be needed.

    With a share s_kn of the copies of the token's k-th expert on node n, and each expert's copy chosen
    independently, node n is needed with probability 1 − Π_k (1 − s_kn).
    """
    assert problem.sample_TLK is not None  # the problem has checked it
    share_EN = np.zeros((problem.experts, problem.nodes))
    slot_expert_S = placement.slot_expert_LS[row]
    filled_S = slot_expert_S != EMPTY
    node_S = problem.node_G[placement.slot_gpu_S]
    np.add.at(share_EN, (slot_expert_S[filled_S], node_S[filled_S]), 1.0)
    share_EN /= share_EN.sum(axis=1, keepdims=True)
    needed_TN = 1.0 - np.prod(1.0 - share_EN[problem.sample_TLK[:, row]], axis=1)
    away_N = 1.0 - np.bincount(problem.node_G) / problem.gpus
    if problem.home_T is not None:
        needed_TN[np.arange(len(needed_TN)), problem.home_T] = 0.0
        away_N = np.ones(problem.nodes)
    foreign_T: Floats = needed_TN @ away_N
    return foreign_T
