"""Strictly hierarchical layers: groups to nodes, then each node by itself."""

from __future__ import annotations

import numpy as np

from placement.judging.bounds import window_loads
from placement.judging.divisions import best_division, experts_of, group_items, node_bound, of_groups
from placement.judging.packing_bound import Loads
from placement.problem.placement import EMPTY
from placement.problem.problem import Problem
from placement.problem.rules import FREE
from placement.solvers.packing import cost
from placement.solvers.search import from_scratch, pack_of
from traces.base.arrays import Ints

_ROUNDS = 8
"""With an effort of 1: exchanges of groups between the costliest node and another."""

_GLANCE = 0.1
"""Of the effort, to see whether an exchange of groups helps."""


def by_nodes(problem: Problem, row: int, bound: float, effort: float) -> Ints:
    """int64 [G, K], the experts on each GPU, of the layer at index ``row``, among ``EMPTY``.

    The division of groups over nodes that has the best bound comes first. Then a group of the node that
    costs most is exchanged for one of another node as long as that helps.
    """
    glance = _Nodes(problem, row, bound, _GLANCE * effort)
    group_NQ = _first_division(problem, row, effort)
    for _ in range(round(_ROUNDS * effort)):
        if not _exchange_groups(glance, group_NQ):
            break
    nodes = _Nodes(problem, row, bound, effort)
    item_GK = np.full((problem.gpus, min(int(problem.slots_G.max()), problem.experts)), EMPTY)
    for node, group_Q in enumerate(group_NQ):
        _, item_MK = nodes.solve(node, group_Q)
        item_GK[np.flatnonzero(problem.node_G == node), : item_MK.shape[1]] = item_MK
    return item_GK


class _Nodes:
    """Solves a node with some groups, and remembers it."""

    def __init__(self, problem: Problem, row: int, bound: float, effort: float) -> None:
        self._problem, self._bound, self._effort = problem, bound, effort
        self._loads_W = window_loads(problem, row)
        self._known: dict[tuple[int, tuple[int, ...]], tuple[float, Ints]] = {}

    def solve(self, node: int, group_Q: Ints) -> tuple[float, Ints]:
        """Cost of the node and int64 [GPUs of the node, K], the experts on each."""
        key = (node, tuple(sorted(group_Q.tolist())))
        if key not in self._known:
            self._known[key] = self._solve(*key)
        return self._known[key]

    def _solve(self, node: int, groups: tuple[int, ...]) -> tuple[float, Ints]:
        problem = self._problem
        expert_M = experts_of(problem, groups)
        here_G = problem.node_G == node
        slots_G, speed_G = problem.slots_G[here_G], problem.speed_G[here_G]
        loads_W = [of_groups(problem, loads, groups) for loads in self._loads_W]
        bound = self._bound
        if len(loads_W) == 1 and bound > 0.0:
            bound = node_bound(loads_W[0], slots_G, speed_G, bound)
        free = np.full((len(expert_M), len(slots_G)), FREE, dtype=np.int8)
        pack = pack_of(loads_W, slots_G, speed_G, problem.objective.worst_window, free)
        from_scratch(pack, bound, self._effort)
        return cost(pack), np.where(pack.item_GK == EMPTY, EMPTY, expert_M[pack.item_GK])


def _first_division(problem: Problem, row: int, effort: float) -> Ints:
    """int64 [N, Q], the groups of each node: by bound, or where there are too many divisions, by load."""
    loads_W = window_loads(problem, row)
    mean_E = np.mean([loads.token_E for loads in loads_W], axis=0)
    if mean_E.any():
        mean = Loads(mean_E, loads_W[0].quiet_E, loads_W[0].per_active)
        division = best_division(problem, mean, float(mean_E.sum() / problem.speed_G.sum()))
        if division is not None:
            return division.group_NQ
    items, seats_N, speed_N = group_items(problem, mean_E)
    free = np.full((problem.groups, problem.nodes), FREE, dtype=np.int8)
    pack = pack_of([items], seats_N, speed_N, True, free)
    from_scratch(pack, 0.0, effort)
    return pack.item_GK


def _exchange_groups(nodes: _Nodes, group_NQ: Ints) -> bool:
    """Make the best exchange of a group of the costliest node; False where none helps."""
    cost_N = [nodes.solve(node, group_Q)[0] for node, group_Q in enumerate(group_NQ)]
    worst = int(np.argmax(cost_N))
    best, found = cost_N[worst] * (1.0 - 1e-9), None
    for other in range(len(group_NQ)):
        if other == worst:
            continue
        for mine in range(group_NQ.shape[1]):
            for theirs in range(group_NQ.shape[1]):
                pair = group_NQ[[worst, other]]
                pair[0, mine], pair[1, theirs] = pair[1, theirs], pair[0, mine]
                after = nodes.solve(worst, pair[0])[0]
                if after < best:
                    after = max(after, nodes.solve(other, pair[1])[0])
                if after < best:
                    best, found = after, (other, pair)
    if found is None:
        return False
    other, pair = found
    group_NQ[[worst, other]] = pair
    return True
