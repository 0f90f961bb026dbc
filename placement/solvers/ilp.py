"""The solver ``ilp``: integer programmes where they win, from what ``swap`` found, and with what they prove.

To minimise the largest load directly is hopeless for branch and bound: at 256 experts on 32 GPUs two minutes
end worse than the largest load first. To ask whether all loads fit under a ceiling is quick, if the ceiling
is not at its tightest. So small layers are bisected between the proven bound and the incumbent, and in all
others a few GPUs at a time are filled anew, exactly.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from placement.judging.evaluation import cost_L
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.problem.rules import held_EG, moves, moves_L
from placement.solvers.arrangement import in_slots
from placement.solvers.fitting import fit
from placement.solvers.neighbourhood import LayerRules
from placement.solvers.programme import TOLERANCE, Effort, load_backends
from placement.solvers.solution import NO_CLOCK, Search, Solution, solution
from placement.solvers.swap import swap
from traces.base.arrays import Bools, Floats, Int16s, Ints

_MOST_BINARIES = 600  # of a whole layer; 64 experts on 8 GPUs without copies are 576
_NODES = 50  # of branch and bound, for one programme
_PRECISION = 5e-4  # relative distance of cost and bound at which a layer is done
_UNKNOWN = 2  # ceilings that neither hold nor are ruled out, after which bisection ends
_FREE_COPIES = 16  # in a neighbourhood
_TRIES = 3  # neighbourhoods for one ceiling that fail in a row
_ROUNDS = 6  # ceilings one after another
_SHARES = (0.5, 0.9)  # how far above the mean the next ceiling is, of the largest load; after a failure


def ilp(problem: Problem, search: Search = NO_CLOCK, *, backend: str = "highs") -> Solution:
    """Start from ``swap`` and improve it layer by layer; never worse than that.

    Args:
        backend: ``highs``, or ``cbc``, which comes with PuLP.

    Raises:
        PlacementError: the backend is unknown or not installed.
    """
    started = time.perf_counter()
    effort = Effort.within(search, _NODES, started, backend)
    base = swap(problem, search)
    slot_expert_LS, proven_L = base.placement.slot_expert_LS.copy(), base.bound_L.copy()
    spare: int | None = None
    if problem.max_moves is not None:
        spare = problem.max_moves - int(moves_L(problem, base.placement).sum())
    limit_reached, interrupted = base.limit_reached, False
    rng_L = np.random.default_rng(search.seed).spawn(len(proven_L))
    try:
        load_backends()
        for row, rng in enumerate(rng_L):
            if base.gap_L[row] <= _PRECISION:
                continue
            if effort.over:
                limit_reached = True
                break
            layer = _Layer(problem, row, base.placement, effort, rng)
            # What one layer leaves of the moves to spare, the next ones share.
            part = None if spare is None else spare // (len(proven_L) - row)
            proven_L[row] = layer.improve(base.bound_L[row], part)
            slot_expert_LS[row] = layer.slots()
            limit_reached |= layer.limited
            spare = None if spare is None else spare - layer.moves
    except KeyboardInterrupt:
        interrupted = True  # the layers that are done stay
    placement = replace(base.placement, slot_expert_LS=slot_expert_LS, origin="ilp")
    return solution(
        problem, placement, "ilp", started, proven_L, limit_reached=limit_reached, interrupted=interrupted
    )


class _Layer:
    """One layer of a problem, and the best that is known of it.

    Attributes:
        held: bool [E, G], where its copies lie.
        cost: its part of the objective.
        moves: by how much the copies grew that are not where the previous placement has them.
        limited: whether a limit ended the search above its precision.
    """

    def __init__(
        self, problem: Problem, row: int, base: Placement, effort: Effort, rng: np.random.Generator
    ) -> None:
        self.problem, self.row, self.base = problem, row, base
        self.effort, self.rng = effort, rng
        self.rules = LayerRules(problem, row)
        self.alone = _alone(problem, row)
        self.held = held_EG(base, row)
        self.cost = self._cost(self.held)
        self.moves, self.limited = 0, False

    def improve(self, bound: float, spare: int | None) -> float:
        """Bisect where the layer is small and its objective the largest load alone; else refill parts.

        Returns:
            what no placement of the layer costs less than, at least ``bound``.
        """
        problem, objective = self.problem, self.problem.objective
        before = moves(problem, self.row, self.held)
        most = None if spare is None else before + spare
        one_ceiling = problem.windows == 1 or objective.worst_window
        plain = objective.per_copy == objective.per_move == 0 and problem.groups == 1
        whole = self.rules.whole(np.ones(problem.windows), most)
        if one_ceiling and plain and whole.size <= _MOST_BINARIES:
            proven = self._bisect(bound, most)
            # Under a limit on all layers together another split of it might do better.
            bound = proven if most is None else bound
        else:
            self._refill(most)
            if objective.per_copy > 0 and problem.nodes > 1:
                self._bring_near(most)
            self.limited |= bool(self.cost > bound * (1 + _PRECISION))
        self.moves = moves(self.problem, self.row, self.held) - before
        return bound

    def _bisect(self, bound: float, most: int | None) -> float:
        """Halve the way from the bound to the cost until little is left; returns what is proven."""
        floor, unknown = bound, 0
        # Programmes have no GPU hold two copies of an expert. From three copies on that may cost less: they
        # say nothing about it then.
        proves = self.problem.slots - self.problem.experts < 2
        while unknown < _UNKNOWN and self.cost - floor > _PRECISION * self.cost:
            if self.effort.over:
                self.limited = True
                break
            middle = 0.5 * (floor + self.cost)
            fitted = fit(self.rules.whole(np.full(self.problem.windows, middle), most), self.effort)
            if fitted.held_EG is not None:
                if not self._take(fitted.held_EG):
                    break  # within the solver's tolerance of the ceiling, and no better
            elif fitted.impossible:
                floor = middle * (1 - TOLERANCE)
                bound = floor if proves else bound
            else:
                floor, unknown, self.limited = middle, unknown + 1, True
        return bound

    def _refill(self, most: int | None) -> None:
        """Lower the ceiling towards the mean, as long as the GPUs above it can be emptied."""
        share = _SHARES[0]
        for _ in range(_ROUNDS):
            cost_WG = self.rules.gpu_cost_WG(self.held)
            top_W = cost_WG.max(axis=1)
            floor_W = cost_WG @ self.problem.speed_G / self.problem.speed_G.sum()
            if self.problem.objective.worst_window:
                top_W, floor_W = np.full_like(top_W, top_W.max()), np.full_like(floor_W, floor_W.max())
            if (top_W - floor_W <= _PRECISION * top_W).all():
                return
            ceiling_W = floor_W + share * (top_W - floor_W)
            if not self._lower(ceiling_W, most):
                if share == _SHARES[-1]:
                    return
                share = _SHARES[-1]

    def _lower(self, ceiling_W: Floats, most: int | None) -> bool:
        """Whether every GPU came under the ceiling: the fullest with others, again and again."""
        held, failed = self.held, 0
        while failed < _TRIES and not self.effort.over:
            over_G = (self.rules.gpu_cost_WG(held) / np.where(ceiling_W > 0, ceiling_W, 1.0)[:, None]).max(
                axis=0
            )
            if over_G.max() <= 1 + TOLERANCE:
                return self._take(held)
            fullest = int(over_G.argmax())
            gpu_H = self._with_others(
                held, fullest, int(np.where(self.problem.slots_G > 0, over_G, np.inf).argmin())
            )
            refilled = self._refilled(held, gpu_H, ceiling_W, most)
            if refilled is None:
                failed += 1
            else:
                held, failed = refilled, 0
        self._take(held)
        return False

    def _bring_near(self, most: int | None) -> None:
        """Refill GPUs of different nodes so that tokens need fewer nodes, with no load above the largest."""
        failed = 0
        while failed < _TRIES and not self.effort.over:
            ceiling_W = self.rules.gpu_cost_WG(self.held).max(axis=1)
            gpu_H = self._with_others(self.held, int(self.rng.integers(self.problem.gpus)))
            refilled = self._refilled(self.held, gpu_H, ceiling_W, most, near=True)
            better = refilled is not None and self._take(refilled)
            failed = 0 if better else failed + 1

    def _with_others(self, held: Bools, *first: int) -> Ints:
        """Those GPUs and random ones, until they hold as many copies as a neighbourhood may."""
        others = [int(gpu) for gpu in self.rng.permutation(self.problem.gpus) if gpu not in first]
        chosen = list(dict.fromkeys(first))
        for gpu in others:
            if len(chosen) > 1 and held[:, [*chosen, gpu]].sum() > _FREE_COPIES:
                break
            chosen.append(gpu)
        return np.array(sorted(chosen))

    def _refilled(
        self, held: Bools, gpu_H: Ints, ceiling_W: Floats, most: int | None, *, near: bool = False
    ) -> Bools | None:
        """``held`` with other copies on these GPUs; None where none were found under the ceiling."""
        expert_F, fitting = self.rules.part(held, gpu_H, ceiling_W, most, near=near)
        fitted = fit(fitting, self.effort)
        if fitted.held_EG is None:
            return None
        refilled = held.copy()
        refilled[np.ix_(expert_F, gpu_H)] = fitted.held_EG
        return refilled

    def _take(self, held: Bools) -> bool:
        """Keep what is better than all before."""
        cost = self._cost(held)
        if cost >= self.cost:
            return False
        self.held, self.cost = held, cost
        return True

    def _cost(self, held: Bools) -> float:
        expert_N, gpu_N = np.nonzero(held)
        slot_expert_LS, slot_gpu_S = expert_N[None].astype(np.int16), gpu_N.astype(np.int32)
        lone = Placement(
            slot_expert_LS, slot_gpu_S, self.problem.experts, self.problem.gpus, self.alone.layers
        )
        moved = moves(self.problem, self.row, held)
        return float(cost_L(self.alone, lone)[0]) + self.problem.objective.per_move * moved

    def slots(self) -> Int16s:
        """int16 [S]: copies that stay on their GPU keep their slots."""
        return in_slots(self.held, self.base.slot_gpu_S, self.base.slot_expert_LS[self.row])


def _alone(problem: Problem, row: int) -> Problem:
    """One layer of a problem without its rules, to evaluate placements of it."""
    active_WLE, sample_TLK = problem.active_WLE, problem.sample_TLK
    return replace(
        problem,
        load_WLE=problem.load_WLE[:, [row]],
        layers=problem.layers[row : row + 1],
        objective=replace(problem.objective, per_move=0.0),
        groups=1,
        fixed=(),
        forbidden=(),
        previous=None,
        max_moves=None,
        active_WLE=None if active_WLE is None else active_WLE[:, [row]],
        sample_TLK=None if sample_TLK is None else sample_TLK[:, [row]],
    )
