"""A few GPUs of a layer, free to be filled anew, while all others stay as they are.

Axes as in :mod:`placement.solvers.fitting`; F experts and H GPUs that are free.
"""

from __future__ import annotations

import numpy as np

from placement.judging.evaluation import copy_cost
from placement.problem.problem import Problem
from placement.problem.rules import FIXED, FORBIDDEN, before_EG, held_EN, rule_EG
from placement.solvers.fitting import Fitting, Patterns
from traces.base.arrays import Bools, Floats, Ints

_MOST_PATTERNS = 300  # of a sample: each takes a variable for each node


class LayerRules:
    """One layer of a problem, looked up for many neighbourhoods.

    Attributes:
        cost_RWE: list of float64 [W, E], what one of r + 1 copies costs.
        rule: int8 [E, G].
        before_EG: bool, where the previous placement has copies.
    """

    def __init__(self, problem: Problem, row: int) -> None:
        self.problem, self.row = problem, row
        self.rule = rule_EG(problem, row)
        # More copies than GPUs, or than slots to spare and one, there cannot be.
        self.most = min(problem.gpus, problem.slots - problem.experts + 1)
        self.cost_RWE = [copy_cost(problem, copies + 1)[:, row] for copies in range(self.most)]
        self.before_EG = before_EG(problem, row)

    def gpu_cost_WG(self, held: Bools) -> Floats:
        """float64 [W, G], cost of each GPU by its speed."""
        copies_E = held.sum(axis=1)
        cost_WE = np.stack(self.cost_RWE)[copies_E - 1, :, np.arange(len(held))].T
        cost_WG: Floats = cost_WE @ held / self.problem.speed_G
        return cost_WG

    def whole(self, ceiling_W: Floats, max_moves: int | None) -> Fitting:
        """Every GPU free, and every number of copies."""
        choices = {copies + 1: cost_WE for copies, cost_WE in enumerate(self.cost_RWE)}
        return Fitting(
            tuple(
                {copies: cost_WE[:, expert] for copies, cost_WE in choices.items()}
                for expert in range(self.problem.experts)
            ),
            self.problem.slots_G,
            self.problem.speed_G,
            ceiling_W,
            self.rule != FORBIDDEN,
            self.rule == FIXED,
            ~self.before_EG,
            max_moves,
        )

    def part(
        self, held: Bools, gpu_H: Ints, ceiling_W: Floats, max_moves: int | None, *, near: bool = False
    ) -> tuple[Ints, Fitting]:
        """Only the GPUs ``gpu_H`` free. An expert with all its copies there may have one more or less.

        Args:
            held: bool [E, G], where copies are now.
            max_moves: of this layer in all.
            near: whether to make distinct nodes of the sampled tokens few.

        Returns:
            (expert_F, fitting): the experts with copies on these GPUs, and how they may lie there.
        """
        inside = held[:, gpu_H]
        expert_F = np.flatnonzero(inside.any(axis=1))
        here_F, all_F = inside[expert_F].sum(axis=1), held[expert_F].sum(axis=1)
        choices = []
        for expert, here, copies in zip(expert_F, here_F.tolist(), all_F.tolist(), strict=True):
            # Neighbouring numbers: with all of them a programme takes minutes.
            fewer, more = max(1, here - 1), min(here + 1, len(gpu_H), self.most)
            numbers = range(fewer, more + 1) if here == copies and not near else [here]
            # What a copy costs depends on all copies, what is chosen here is those on these GPUs.
            choices.append({n: self.cost_RWE[n + copies - here - 1][:, expert] for n in numbers})
        allowed = (self.rule != FORBIDDEN)[np.ix_(expert_F, gpu_H)]
        if self.problem.groups > 1:
            allowed &= self._home_EG(held)[np.ix_(expert_F, gpu_H)]
        if max_moves is not None:
            elsewhere = np.delete(held & ~self.before_EG, gpu_H, axis=1)
            max_moves -= int(elsewhere.sum())
        return expert_F, Fitting(
            tuple(choices),
            self.problem.slots_G[gpu_H],
            self.problem.speed_G[gpu_H],
            ceiling_W,
            allowed,
            (self.rule == FIXED)[np.ix_(expert_F, gpu_H)],
            ~self.before_EG[np.ix_(expert_F, gpu_H)],
            max_moves,
            self._patterns(held, expert_F, gpu_H) if near else None,
        )

    def _home_EG(self, held: Bools) -> Bools:
        """bool [E, G], whether a GPU is on the node where the expert's group is now."""
        node_E = self.problem.node_G[held.argmax(axis=1)]
        home: Bools = node_E[:, None] == self.problem.node_G
        return home

    def _patterns(self, held: Bools, expert_F: Ints, gpu_H: Ints) -> Patterns:
        """The commonest patterns of free experts in the sample, with the nodes that others need."""
        problem = self.problem
        assert problem.sample_TLK is not None  # problems whose objective counts copies have one
        ids_TK = problem.sample_TLK[:, self.row]
        place_E = np.full(problem.experts, -1)
        place_E[expert_F] = np.arange(len(expert_F))
        free_G = np.isin(np.arange(problem.gpus), gpu_H)
        needs_TN = np.logical_or.reduce(held_EN(problem, held & ~free_G)[ids_TK], axis=1)
        if problem.home_T is not None:
            needs_TN[np.arange(len(ids_TK)), problem.home_T] = True
        # One experts' pattern with one set of needed nodes is one row.
        rows_TX = np.concatenate([np.sort(place_E[ids_TK], axis=1), needs_TN], axis=1)
        free_T = rows_TX[:, ids_TK.shape[1] - 1] >= 0
        rows_PX, tokens_P = np.unique(rows_TX[free_T], axis=0, return_counts=True)
        common_P = np.argsort(-tokens_P, kind="stable")[:_MOST_PATTERNS]
        return Patterns(
            rows_PX[common_P, : ids_TK.shape[1]],
            tokens_P[common_P],
            rows_PX[common_P, ids_TK.shape[1] :].astype(np.bool_),
            problem.node_G[gpu_H],
        )
