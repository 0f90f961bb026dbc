"""Strictly hierarchical layers: groups to nodes, then each node by itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.bounds import window_loads
from placement.companions import Loads
from placement.packing import cost
from placement.placement import EMPTY
from placement.problem import Problem
from placement.rules import FREE
from placement.search import from_scratch, pack_of

Ints = npt.NDArray[np.int64]

_ROUNDS = 8
"""With an effort of 1: rounds of exchanging groups, each over all groups of the costliest node."""


def by_nodes(problem: Problem, row: int, bound: float, effort: float) -> Ints:
    """int64 [G, K], the experts on each GPU, of the layer at index ``row``, among ``EMPTY``.

    Groups are packed like experts, by load alone, onto nodes with equal numbers of them. Then a group of
    the node that costs most is exchanged for one of another node as long as that helps: only solving both
    nodes shows what their spare slots are worth.
    """
    nodes = _Nodes(problem, row, bound, effort)
    group_NQ = _groups_of_nodes(problem, row, effort)
    solved = [nodes.solve(node, group_NQ[node]) for node in range(problem.nodes)]
    for _ in range(round(_ROUNDS * effort)):
        worst = int(np.argmax([cost for cost, _ in solved]))
        if not _exchange_groups(nodes, group_NQ, solved, worst):
            break
    most = min(int(problem.slots_G.max()), problem.experts)
    item_GK = np.full((problem.gpus, most), EMPTY)
    for node, (_, item_MK) in enumerate(solved):
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
        size = problem.experts // problem.groups
        expert_M = (np.array(groups)[:, None] * size + np.arange(size)).ravel()
        here_G = problem.node_G == node
        loads_W = [
            Loads(loads.token_E[expert_M], loads.quiet_E[expert_M], loads.per_active)
            for loads in self._loads_W
        ]
        free = np.full((len(expert_M), int(here_G.sum())), FREE, dtype=np.int8)
        worst = problem.objective.worst_window
        pack = pack_of(loads_W, problem.slots_G[here_G], problem.speed_G[here_G], worst, free)
        from_scratch(pack, self._bound, self._effort)
        return cost(pack), np.where(pack.item_GK == EMPTY, EMPTY, expert_M[pack.item_GK])


def _groups_of_nodes(problem: Problem, row: int, effort: float) -> Ints:
    """int64 [N, Q], groups of each node, equally many, packed by load per speed of the node."""
    seats = problem.groups // problem.nodes
    loads_W = [
        Loads(loads.token_E.reshape(problem.groups, -1).sum(axis=1), np.zeros(problem.groups), 0.0)
        for loads in window_loads(problem, row)
    ]
    free = np.full((problem.groups, problem.nodes), FREE, dtype=np.int8)
    speed_N = np.bincount(problem.node_G, problem.speed_G).astype(np.float64)
    pack = pack_of(loads_W, np.full(problem.nodes, seats), speed_N, problem.objective.worst_window, free)
    from_scratch(pack, 0.0, effort)
    return pack.item_GK


def _exchange_groups(nodes: _Nodes, group_NQ: Ints, solved: list[tuple[float, Ints]], worst: int) -> bool:
    """Make the best exchange of a group of the costliest node; False where none helps."""
    best, found = solved[worst][0] * (1.0 - 1e-9), None
    for other in range(len(group_NQ)):
        if other == worst:
            continue
        for mine in range(group_NQ.shape[1]):
            for theirs in range(group_NQ.shape[1]):
                pair = group_NQ[[worst, other]]
                pair[0, mine], pair[1, theirs] = pair[1, theirs], pair[0, mine]
                after = nodes.solve(worst, pair[0]), nodes.solve(other, pair[1])
                larger = max(after[0][0], after[1][0])
                if larger < best:
                    best, found = larger, (other, pair, after)
    if found is None:
        return False
    other, pair, after = found
    group_NQ[[worst, other]] = pair
    solved[worst], solved[other] = after
    return True
