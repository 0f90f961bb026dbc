"""The heuristics of :mod:`placement.solvers.heuristics` as solvers of a problem.

They see the loads' mean over windows and the slots of each GPU, and nothing else of the problem; what
they answer is refused where it breaks a rule.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from placement.problem.placement import EMPTY, Placement
from placement.problem.problem import Problem
from placement.solvers import heuristics
from placement.solvers.solution import NO_CLOCK, Limits, Report, Solution, solution
from traces.base.arrays import Floats, Int16s, Int32s

Heuristic = Callable[[Floats, Int32s, int], Int16s]


def linear(
    problem: Problem, *, seed: int = 0, limits: Limits = NO_CLOCK, report: Report | None = None
) -> Solution:
    """:func:`placement.solvers.heuristics.linear`."""
    return _solved(problem, "linear", heuristics.linear)


def round_robin(
    problem: Problem, *, seed: int = 0, limits: Limits = NO_CLOCK, report: Report | None = None
) -> Solution:
    """:func:`placement.solvers.heuristics.round_robin`."""
    return _solved(problem, "round_robin", heuristics.round_robin)


def greedy(
    problem: Problem, *, seed: int = 0, limits: Limits = NO_CLOCK, report: Report | None = None
) -> Solution:
    """:func:`placement.solvers.heuristics.greedy`."""
    return _solved(problem, "greedy", heuristics.greedy)


def _solved(problem: Problem, name: str, heuristic: Heuristic) -> Solution:
    started = time.perf_counter()
    slot_gpu_S = problem.slot_gpu_S
    # A GPU has no use for more slots than there are experts; the last of them stay empty.
    rank_S = np.empty(problem.slots, dtype=np.int64)
    by_gpu_S = np.argsort(slot_gpu_S, kind="stable")
    first_G = np.cumsum(problem.slots_G) - problem.slots_G
    rank_S[by_gpu_S] = np.arange(problem.slots) - first_G[slot_gpu_S[by_gpu_S]]
    useful_S = rank_S < problem.experts
    slot_expert_LS = np.full((len(problem.layers), problem.slots), EMPTY, dtype=np.int16)
    slot_expert_LS[:, useful_S] = heuristic(problem.load_WLE.mean(axis=0), slot_gpu_S[useful_S], problem.gpus)
    placement = Placement(
        slot_expert_LS, slot_gpu_S, problem.experts, problem.gpus, problem.layers, origin=name
    )
    return solution(problem, placement, name, started)
