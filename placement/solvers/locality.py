"""The solver ``locality``: experts that are chosen together on one node, at a stated price in balance.

A token is sent once to each node on which it has an expert, so what its way costs is the number of those
nodes, and inside a node the number of GPUs. Where experts of *neighbouring layers* lie matters to no byte as
long as tokens go home after every layer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from placement.judging.evaluation import copy_cost
from placement.problem.errors import PlacementError
from placement.problem.objective import Objective
from placement.problem.placement import EMPTY, Placement
from placement.problem.problem import Problem
from placement.problem.rules import FIXED, FORBIDDEN, before_EG, moves_L, rule_EG
from placement.solvers.hypergraph import NO_LIMIT, Layer, anneal, loads, refine
from placement.solvers.solution import NO_CLOCK, Search, Solution, solution
from placement.solvers.swap import swap
from traces.base.arrays import Floats, Int16s, Int32s, Ints

BALANCE_LOST = 0.01
"""By how much the largest load may exceed that of ``swap``, as a fraction."""

_MOST_TOKENS = 16_384  # of the sample: more change little and take longer in proportion
_SWEEPS = 30  # a handful suffice
_STEPS = 80  # of annealing for each slot: 2 to 3 % fewer nodes than without; five times as many, 1 % more
_HEAT = 0.002  # domains per sampled token, to begin with; from 0.001 to 0.007 all ended within 2 %
_ENOUGH = 2  # placements of a layer to choose from
_NO_HOME = -1

# Shares of a node's limit that are filled, so that its GPUs can still be levelled: one try each, with luck of
# its own, until enough have succeeded.
_NODE_FILLS = (0.999, 0.998, 0.997, 0.996, 0.995, 0.993, 0.99, 0.98)


def locality(problem: Problem, search: Search = NO_CLOCK, *, balance_lost: float = BALANCE_LOST) -> Solution:
    """Start from ``swap``; exchange experts between nodes, level the GPUs of each node, then exchange inside.

    The first exchanges look at the load of nodes alone, which leaves them far more freedom than that of
    GPUs. Where rules hold single positions, or levelling fails, they keep to the limits of GPUs from the
    start. With groups, which must stay on their nodes, only exchanges inside nodes are left. Where moves
    are limited, ``swap`` gets half of them.

    Args:
        balance_lost: by how much the largest load of a GPU may exceed that of ``swap``, in every window.

    Raises:
        PlacementError: the problem has no sampled tokens.
    """
    started = time.perf_counter()
    if problem.sample_TLK is None:
        raise PlacementError("locality needs sampled tokens: give a routing trace", field="solver")
    if not 0 <= balance_lost < np.inf:
        raise PlacementError("must be finite and not negative", field="balance_lost", got=balance_lost)
    base = _balanced(problem, search)
    tables = _Tables.of(problem, base.placement)
    slot_expert_LS = base.placement.slot_expert_LS.copy()
    spare = NO_LIMIT
    if problem.max_moves is not None:
        spare = problem.max_moves - int(moves_L(problem, base.placement).sum())
    rng_L = np.random.default_rng(search.seed).spawn(len(slot_expert_LS))
    done = 0
    interrupted = False
    try:
        for row in range(len(slot_expert_LS)):
            if search.seconds is not None and time.perf_counter() - started > search.seconds:
                break
            # What one layer leaves of its part, the next ones share.
            budget = spare if problem.max_moves is None else spare // (len(slot_expert_LS) - row)
            refinement = _Refinement(problem, base.placement, row, tables, balance_lost)
            lucks = (_luck(rng_L[row], problem, len(tables.ids_TLK), search.effort) for _ in _NODE_FILLS)
            gpu_C, spent = refinement.run(budget, lucks)
            slot_expert_LS[row] = _into_slots(slot_expert_LS[row], base.placement.slot_gpu_S, gpu_C)
            spare -= spent
            done += 1
    except KeyboardInterrupt:
        interrupted = True  # the layers that are done stay
    placement = replace(base.placement, slot_expert_LS=slot_expert_LS, origin="locality")
    limit_reached = base.limit_reached or done < len(slot_expert_LS)
    return solution(
        problem, placement, "locality", started, limit_reached=limit_reached, interrupted=interrupted
    )


def _balanced(problem: Problem, search: Search) -> Solution:
    """``swap``, with half of the moves where they are limited, so that some are left for locality."""
    if problem.max_moves is not None:
        try:
            return swap(replace(problem, max_moves=problem.max_moves // 2), search)
        except PlacementError:
            pass  # the rules alone ask for more
    return swap(problem, search)


@dataclass(frozen=True)
class _Tables:
    """What all layers are looked up in.

    Attributes:
        ids_TLK: the sample, or an even part of it.
        home_T: the node at home of its tokens; −1 where it is unknown.
        cost_WLE: what a copy of an expert costs.
        copies_LE, slots_LER: how many copies of an expert there are, and in which slots.
    """

    ids_TLK: Ints
    home_T: Ints
    cost_WLE: Floats
    copies_LE: Int32s
    slots_LER: Int32s

    @classmethod
    def of(cls, problem: Problem, base: Placement) -> _Tables:
        assert problem.sample_TLK is not None  # the solver has checked it
        stride = -(-len(problem.sample_TLK) // _MOST_TOKENS)
        ids_TLK = problem.sample_TLK[::stride]
        home_T = np.full(len(ids_TLK), _NO_HOME)
        if problem.home_T is not None:
            home_T = problem.home_T[::stride].copy()
        return cls(ids_TLK, home_T, copy_cost(problem, base.replicas_LE), *base.replica_table())

    def copy_TK(self, row: int) -> Ints:
        """int64 [T, K], the slot that serves each of a token's experts: copies take turns, token by token."""
        ids_TK = self.ids_TLK[:, row]
        turn_TK = np.arange(len(ids_TK))[:, None] % self.copies_LE[row, ids_TK]
        slot_TK: Ints = self.slots_LER[row, ids_TK, turn_TK].astype(np.int64)
        return slot_TK


def _luck(rng: np.random.Generator, problem: Problem, tokens: int, effort: float) -> tuple[Ints, Floats]:
    """The random choices of one try of annealing.

    Returns:
        int64 [S, 2], two copies to try in each step, and float64 [S], domains that their exchange may cost.
    """
    steps = max(1, round(_STEPS * problem.slots * effort))
    cooling_S = (1.0 - np.arange(steps) / steps) ** 2
    heat_S = _HEAT * tokens * cooling_S * rng.standard_exponential(steps)
    return rng.integers(0, problem.slots, (steps, 2)), heat_S


class _Refinement:
    """One layer: its copies, one in each slot, and what they may do."""

    def __init__(
        self, problem: Problem, base: Placement, row: int, tables: _Tables, balance_lost: float
    ) -> None:
        self.problem, self.home_T = problem, tables.home_T
        # Writable copies: compiled code would be compiled again for read-only arrays.
        self.node_G, speed_G = problem.node_G.copy(), problem.speed_G.copy()
        self.gpu_C = base.slot_gpu_S.astype(np.int64)
        expert_C = base.slot_expert_LS[row].astype(np.int64)
        cost_WC = np.where(expert_C == EMPTY, 0.0, tables.cost_WLE[:, row, expert_C])
        load_WG = np.stack([np.bincount(self.gpu_C, cost_C, problem.gpus) for cost_C in cost_WC])
        rule = rule_EG(problem, row)
        pinned_C = (expert_C != EMPTY) & (rule[expert_C, self.gpu_C] == FIXED)
        limit_W = (1.0 + balance_lost) * (load_WG / speed_G).max(axis=1)
        self.layer = Layer(
            tables.copy_TK(row),
            expert_C,
            cost_WC,
            speed_G,
            limit_W,
            rule != FORBIDDEN,
            pinned_C,
            before_EG(problem, row),
        )
        # Rules of single GPUs cannot be kept by looking at nodes.
        self.by_node = problem.max_moves is None and not problem.forbidden and not pinned_C.any()

    def run(self, budget: int, lucks: Iterable[tuple[Ints, Floats]]) -> tuple[Ints, int]:
        """(gpu_C, spent): the new GPU of each copy, and how much of the budget it took."""
        problem, node_G, spent = self.problem, self.node_G, 0
        gpu_C = None
        if problem.nodes > 1 and problem.groups == 1:
            gpu_C = self._by_node(lucks) if self.by_node else None
            if gpu_C is None:
                gpu_C, everywhere_G = self.gpu_C.copy(), np.zeros_like(node_G)
                spent = refine(self.layer, gpu_C, node_G, everywhere_G, self.home_T, budget, _SWEEPS)
        if gpu_C is None:
            gpu_C = self.gpu_C.copy()
        each_G, no_home_T = np.arange(problem.gpus), np.full_like(self.home_T, _NO_HOME)
        spent += refine(self.layer, gpu_C, each_G, node_G, no_home_T, budget - spent, _SWEEPS)
        return gpu_C, spent

    def _by_node(self, lucks: Iterable[tuple[Ints, Floats]]) -> Ints | None:
        """The GPU of each copy after exchanges that look at nodes alone; None where levelling always fails.

        Of the first that can be levelled, the one whose tokens need fewest nodes.
        """
        found: list[Ints] = []
        for fill, luck in zip(_NODE_FILLS, lucks, strict=False):
            gpu_C = self._levelled(self._filled(fill, luck))
            if gpu_C is not None:
                found.append(gpu_C)
            if len(found) == _ENOUGH:
                break
        return min(found, key=self._nodes_needed, default=None)

    def _filled(self, fill: float, luck: tuple[Ints, Floats]) -> Ints:
        """The node of each copy when exchanges fill nodes up to a share of their limit."""
        problem, layer, node_G = self.problem, self.layer, self.node_G
        anywhere_EN = np.ones((problem.experts, problem.nodes), dtype=np.bool_)
        of_nodes = layer._replace(
            speed_G=np.bincount(node_G, problem.speed_G).astype(np.float64),
            limit_W=layer.limit_W * fill,
            allowed_EG=anywhere_EN,
            before_EG=anywhere_EN,
        )
        each_N = np.arange(problem.nodes)
        node_C, everywhere_N = node_G[self.gpu_C], np.zeros_like(each_N)
        anneal(of_nodes, node_C, each_N, everywhere_N, self.home_T, *luck)
        refine(of_nodes, node_C, each_N, everywhere_N, self.home_T, NO_LIMIT, _SWEEPS)
        return node_C

    def _nodes_needed(self, gpu_C: Ints) -> int:
        """Nodes that the sampled tokens need, each once for a token, its home too where it is known."""
        needs_TN = np.zeros((len(self.home_T), self.problem.nodes), dtype=np.bool_)
        each_T = np.arange(len(self.home_T))
        needs_TN[each_T, self.home_T] = self.home_T != _NO_HOME
        needs_TN[each_T[:, None], self.node_G[gpu_C[self.layer.copy_TK]]] = True
        return int(np.count_nonzero(needs_TN))

    def _levelled(self, node_C: Ints) -> Ints | None:
        """The GPU of each copy, on the node that it was given; None where that breaks a limit or a rule.

        Inside a node it is the placement problem again, of as many copies as slots.
        """
        problem, layer, gpu_C = self.problem, self.layer, self.gpu_C.copy()
        # By their limits, so that 1 is the limit in every window.
        share_WC = layer.cost_WC / np.where(layer.limit_W > 0, layer.limit_W, 1.0)[:, None]
        for node in range(problem.nodes):
            copies, gpus = np.flatnonzero(node_C == node), np.flatnonzero(self.node_G == node)
            if not share_WC[:, copies].any():
                # Whatever way they lie, these GPUs are level.
                gpu_C[copies] = np.repeat(gpus, problem.slots_G[gpus])
                continue
            inside = swap(
                Problem.of(
                    share_WC[:, None, copies],
                    len(gpus),
                    problem.slots_G[gpus].tolist(),
                    speed=problem.speed_G[gpus].tolist(),
                    objective=Objective(worst_window=True),
                )
            ).placement
            gpu_C[copies[inside.slot_expert_LS[0]]] = gpus[inside.slot_gpu_S]
        load_WG, held_EG = loads(layer, gpu_C)
        fits = (load_WG <= layer.limit_W[:, None] * layer.speed_G).all() and held_EG.max() <= 1
        return gpu_C if fits else None


def _into_slots(slot_expert_S: Int16s, slot_gpu_S: Int32s, gpu_C: Ints) -> Int16s:
    """int16 [S]: what stays on its GPU keeps its slot, the rest fills the slots that others left."""
    moved_S = slot_expert_S.copy()
    gone_N = np.flatnonzero(gpu_C != slot_gpu_S)
    comes_N = gone_N[np.argsort(gpu_C[gone_N], kind="stable")]
    free_N = gone_N[np.argsort(slot_gpu_S[gone_N], kind="stable")]
    moved_S[free_N] = slot_expert_S[comes_N]
    return moved_S
