"""``swap``: pack largest first, replan copies, exchange; or exchange from where the experts are."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from placement.judging.bounds import bound_L
from placement.problem.errors import PlacementError
from placement.problem.problem import Problem
from placement.problem.rules import FORBIDDEN, FREE, before_EG, held_EN, nearest_EG, rule_EG
from placement.solvers.arrangement import arranged
from placement.solvers.hierarchy import by_nodes
from placement.solvers.moves import Way, divided, way_from
from placement.solvers.search import ENOUGH, STEPS, from_scratch, hold, layer_pack
from placement.solvers.solution import NO_CLOCK, Search, Solution, solution
from traces.base.arrays import Floats, Ints

Solved = TypeVar("Solved")


def swap(problem: Problem, search: Search = NO_CLOCK) -> Solution:
    """Solve every layer by itself, near its bound.

    It takes no random choices and looks at no clock: its work is set by ``search.effort`` alone. Copies
    across nodes are evaluated and not improved.

    Raises:
        PlacementError: it finds no placement that obeys the rules.
    """
    started = time.perf_counter()
    bounds = bound_L(problem)

    def solved(item_LGK: list[Ints]) -> Solution:
        return solution(problem, arranged(problem, item_LGK, "swap"), "swap", started, bounds)

    best: Solution | None = None
    if not problem.fixed and not problem.forbidden:
        item_LGK = _each(
            lambda row: _from_scratch(problem, row, bounds[row], search.effort), len(problem.layers)
        )
        with contextlib.suppress(PlacementError):  # a limit on moves is the one rule that was not looked at
            best = solved(item_LGK)
    if best is None or problem.max_moves is not None or problem.objective.per_move > 0:
        other = solved(_from_previous(problem, bounds, search.effort))
        best = other if best is None or other.cost < best.cost else best
    return best


def _each(solve: Callable[[int], Solved], layers: int) -> list[Solved]:
    """What ``solve`` makes of each layer; layers are apart, so threads change nothing but the time."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(solve, range(layers)))


def _from_scratch(problem: Problem, row: int, bound: float, effort: float) -> Ints:
    """int64 [G, K] of a layer without rules but groups."""
    if problem.groups > 1:
        return by_nodes(problem, row, bound, effort)
    free = np.full((problem.experts, problem.gpus), FREE, dtype=np.int8)
    pack = layer_pack(problem, row, free)
    if from_scratch(pack, bound, effort):
        return pack.item_GK
    item_GK: Ints = _way(problem, row, bound, effort).item_NGK[-1].astype(np.int64)
    return item_GK


def _from_previous(problem: Problem, bounds: Floats, effort: float) -> list[Ints]:
    """int64 [G, K] of each layer: from the fewest moves that the rules ask for, those that pay best."""
    ways = _each(lambda row: _way(problem, row, bounds[row], effort), len(problem.layers))
    most = math.inf if problem.max_moves is None else problem.max_moves
    steps = divided(ways, problem.objective.per_move, most)
    return [way.item_NGK[step].astype(np.int64) for way, step in zip(ways, steps, strict=True)]


def _way(problem: Problem, row: int, bound: float, effort: float) -> Way:
    """Exchanges of a layer from the nearest placement that obeys the rules."""
    nearest = nearest_EG(problem, row)
    rule = rule_EG(problem, row)
    if problem.groups > 1:
        # Groups stay on the nodes where most of their experts are.
        rule[~held_EN(problem, nearest)[:, problem.node_G]] = FORBIDDEN
    pack = layer_pack(problem, row, rule)
    hold(pack, nearest)
    before = nearest if problem.previous is None else before_EG(problem, row)
    return way_from(pack, before, bound * (1.0 + ENOUGH), round(STEPS * effort))
