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
from placement.solvers.solution import NO_CLOCK, Search, Solution, Solve, solution
from traces.base.arrays import Floats, Int16s, Int32s, ranks

Heuristic = Callable[[Floats, Int32s, int], Int16s]


def one_pass(name: str, heuristic: Heuristic) -> Solve:
    """A heuristic as a solver."""

    def solve(problem: Problem, search: Search = NO_CLOCK) -> Solution:
        started = time.perf_counter()
        slot_gpu_S = problem.slot_gpu_S
        # A GPU has no use for more slots than there are experts; the last of them stay empty.
        useful_S = ranks(slot_gpu_S) < problem.experts
        load_LE = problem.load_WLE.mean(axis=0)
        slot_expert_LS = np.full((len(problem.layers), problem.slots), EMPTY, dtype=np.int16)
        slot_expert_LS[:, useful_S] = heuristic(load_LE, slot_gpu_S[useful_S], problem.gpus)
        placement = Placement(
            slot_expert_LS, slot_gpu_S, problem.experts, problem.gpus, problem.layers, origin=name
        )
        return solution(problem, placement, name, started)

    return solve


linear = one_pass("linear", heuristics.linear)
round_robin = one_pass("round_robin", heuristics.round_robin)
greedy = one_pass("greedy", heuristics.greedy)
