"""What no placement can go below, whatever the numbers of copies and wherever they lie.

Rules on moves are left out, as fewer rules only lower the optimum. Axes as in ``placement.problem``.
"""

from __future__ import annotations

import math

import numpy as np

from placement.judging.divisions import best_division, group_items
from placement.judging.evaluation import copy_cost
from placement.judging.packing_bound import Loads, packing_bound
from placement.problem.problem import Problem
from placement.problem.rules import FORBIDDEN, rule_EG
from traces.base.arrays import Floats

_WINDOWS = 32
"""With more windows, each has the bound of even spreading, and only their mean the full one."""

_EVEN = 1.0 - 1e-12
"""Sums in another order differ in the last bits; a bound must not be above what reaches it."""


def bound_L(problem: Problem) -> Floats:
    """float64 [L], a proven lower bound of the objective of each layer.

    The costs of GPUs and of copies across nodes are bounded apart in each window; the sum of two minima is
    not above the minimum of the sum. The worst of one and the worst of the other may be of two windows.
    """
    usable = problem.speed_G[problem.slots_G > 0].sum()
    even_WL = copy_cost(problem, 1).sum(axis=2) / usable
    copies_WL = np.zeros_like(even_WL)
    if problem.objective.per_copy > 0:
        copies_WL = problem.objective.per_copy * _copies_WL(problem)
    rows = range(len(problem.layers))
    return np.array([_layer_bound(problem, row, even_WL[:, row], copies_WL[:, row]) for row in rows]) * _EVEN


def window_loads(problem: Problem, row: int) -> list[Loads]:
    """Each window of the layer at index ``row``, as compiled code reads it."""
    objective = problem.objective
    quiet_WE = np.zeros((problem.windows, problem.experts))
    if problem.active_WLE is not None:
        # A probability of 1 stays finite, and keeps its effect for any number of copies.
        quiet_WE = np.log(np.maximum(1.0 - problem.active_WLE[:, row], 1e-300))
    return [
        Loads(objective.per_token * problem.load_WLE[window, row], quiet_WE[window], objective.per_active)
        for window in range(problem.windows)
    ]


def _layer_bound(problem: Problem, row: int, even_W: Floats, copies_W: Floats) -> float:
    """Of one layer: each window by itself, and the windows' mean, which no objective is below.

    The largest mean over windows of one GPU's load is below the mean of the largest loads, and that is below
    the worst.

    Args:
        even_W: cost of each window spread evenly over all GPUs; copies can only add to it.
        copies_W: bound of what copies across nodes cost in each window.
    """
    worst = problem.objective.worst_window
    loads_W = window_loads(problem, row)
    least_W = [max(even, _allowed(problem, row, loads)) for even, loads in zip(even_W, loads_W, strict=True)]
    if problem.windows <= _WINDOWS:
        least_W = [
            _window_bound(problem, loads, least) for loads, least in zip(loads_W, least_W, strict=True)
        ]
    both_W = (np.array(least_W) + copies_W).tolist()
    each: float = max(both_W) if worst else math.fsum(both_W) / len(both_W)
    if problem.windows == 1 or problem.objective.per_active > 0:
        return each  # a mean of probabilities is no probability of its copies
    mean = Loads(np.mean([loads.token_E for loads in loads_W], axis=0), loads_W[0].quiet_E, 0.0)
    return max(each, _window_bound(problem, mean, float(np.mean(even_W))) + float(np.mean(copies_W)))


def _allowed(problem: Problem, row: int, loads: Loads) -> float:
    """An expert's tokens must fit the GPUs that it may lie on."""
    if not problem.forbidden:
        return 0.0
    speed_E = (rule_EG(problem, row) != FORBIDDEN) @ problem.speed_G
    return float((loads.token_E / speed_E).max())


def _window_bound(problem: Problem, loads: Loads, least: float) -> float:
    """Of one window, at least ``least``."""
    if least == 0.0:
        return 0.0
    spare_N = np.bincount(problem.node_G, problem.slots_G) - problem.experts // problem.nodes
    spare = int(spare_N.max()) if problem.groups > 1 else problem.slots - problem.experts
    most_E = np.full(problem.experts, spare + 1)
    bound = packing_bound(loads, problem.slots_G, problem.speed_G, most_E, least)
    return max(bound, _group_bound(problem, loads, bound)) if problem.groups > 1 else bound


def _group_bound(problem: Problem, loads: Loads, least: float) -> float:
    """Strictly hierarchical: the best division of groups over nodes.

    Where there are too many, groups are items of their load on nodes as fast as their GPUs together.
    """
    division = best_division(problem, loads, least)
    if division is not None:
        return division.bound
    items, seats_N, speed_N = group_items(problem, loads.token_E)
    return float(packing_bound(items, seats_N, speed_N, np.ones(problem.groups, np.int64), least))


def _copies_WL(problem: Problem) -> Floats:
    """float64 [W, L], copies across nodes: a token's K experts need as many nodes as hold K slots.

    At most one of them is its home; with no home given, each is by the share of GPUs that it has.
    """
    assert problem.sample_TLK is not None  # the problem has checked it
    slots_N = np.sort(np.bincount(problem.node_G, problem.slots_G))[::-1]
    foreign_L = np.empty(len(problem.layers))
    for row in range(len(foreign_L)):
        # Distinct experts of a token; one expert in several copies is needed on one node at least.
        sorted_TK = np.sort(problem.sample_TLK[:, row], axis=1)
        distinct_T = 1 + (np.diff(sorted_TK, axis=1) > 0).sum(axis=1)
        nodes_T = np.searchsorted(np.cumsum(slots_N), distinct_T) + 1
        if problem.home_T is not None:
            foreign_L[row] = (nodes_T - 1).mean()
        else:
            foreign_L[row] = nodes_T.mean() * (1.0 - np.bincount(problem.node_G).max() / problem.gpus)
    tokens_WL: Floats = problem.load_WLE.sum(axis=2) / problem.sample_TLK.shape[2]
    return tokens_WL * foreign_L
