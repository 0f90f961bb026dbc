"""Dividing expert groups over nodes: the bound of a node with each set of groups, and the best division."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np

from placement.judging.packing_bound import Loads, packing_bound
from placement.problem.problem import Problem
from traces.base.arrays import Floats, Ints

_MOST_GROUPS = 10
"""More have too many sets to look at one by one."""


class Division(NamedTuple):
    """Groups of every node.

    Attributes:
        bound: no division lets all nodes finish earlier.
        group_NQ: int64 [N, Q], the groups of each node where it is reached.
    """

    bound: float
    group_NQ: Ints


def best_division(problem: Problem, loads: Loads, least: float) -> Division | None:
    """The division whose worst node has the least bound; None where there are too many.

    Args:
        least: a bound of all GPUs together.
    """
    groups, nodes = problem.groups, problem.nodes
    if groups > _MOST_GROUPS:
        return None
    seats = groups // nodes
    sets = [sum(1 << group for group in chosen) for chosen in itertools.combinations(range(groups), seats)]
    kind_N = [
        (tuple(problem.slots_G[problem.node_G == node]), tuple(problem.speed_G[problem.node_G == node]))
        for node in range(nodes)
    ]
    bound_of = {
        (kind, chosen): node_bound(
            of_groups(problem, loads, members(chosen, groups)), np.array(kind[0]), np.array(kind[1]), least
        )
        for kind in set(kind_N)
        for chosen in sets
    }
    alike = len(set(kind_N)) == 1

    @cache
    def best(taken: int, node: int) -> tuple[float, tuple[int, ...]]:
        """The least worst bound of the nodes from ``node`` on, and their sets, when some groups are taken."""
        if node == nodes:
            return least, ()
        found: tuple[float, tuple[int, ...]] = (math.inf, ())
        first = ~taken & (taken + 1)  # the lowest group that is left
        for chosen in sets:
            # Nodes that are alike can be told apart by their lowest group.
            if chosen & taken or (alike and not chosen & first):
                continue
            here = bound_of[kind_N[node], chosen]
            if here < found[0]:
                later, those = best(taken | chosen, node + 1)
                if max(here, later) < found[0]:
                    found = (max(here, later), (chosen, *those))
        return found

    bound, chosen_N = best(0, 0)
    return Division(bound, np.array([members(chosen, groups) for chosen in chosen_N], dtype=np.int64))


def members(chosen: int, groups: int) -> list[int]:
    """Groups of a set that is written as bits."""
    return [group for group in range(groups) if chosen >> group & 1]


def of_groups(problem: Problem, loads: Loads, groups: Iterable[int]) -> Loads:
    """The loads of the experts of some groups."""
    expert_M = experts_of(problem, groups)
    return Loads(loads.token_E[expert_M], loads.quiet_E[expert_M], loads.per_active)


def experts_of(problem: Problem, groups: Iterable[int]) -> Ints:
    """int64 [M], the experts of some groups."""
    size = problem.experts // problem.groups
    return np.array([group * size + expert for group in groups for expert in range(size)], dtype=np.int64)


def group_items(problem: Problem, load_E: Floats) -> tuple[Loads, Ints, Floats]:
    """Groups as items of their load, on nodes with a slot for each that are as fast as their GPUs together.

    Returns:
        (items, seats_N, speed_N).
    """
    items = Loads(load_E.reshape(problem.groups, -1).sum(axis=1), np.zeros(problem.groups), 0.0)
    seats_N = np.full(problem.nodes, problem.groups // problem.nodes)
    return items, seats_N, np.bincount(problem.node_G, problem.speed_G).astype(np.float64)


def node_bound(loads: Loads, slots_G: Ints, speed_G: Floats, least: float) -> float:
    """Of one node with the experts that it serves, at least ``least``."""
    spare = int(slots_G.sum()) - len(loads.token_E)
    if spare < 0:
        return math.inf
    most_E = np.full(len(loads.token_E), spare + 1)
    even = float(loads.token_E.sum() / speed_G.sum())
    return float(packing_bound(loads, slots_G, speed_G, most_E, max(least, even)))
