"""What a solver answers: a placement, what it costs, and what no placement can go below."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from placement.judging.bounds import bound_L
from placement.judging.evaluation import cost_L
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.problem.rules import check_obeys
from traces.base.arrays import Floats


@dataclass(frozen=True)
class Search:
    """How a solver looks, and when it stops.

    Attributes:
        effort: a factor on the amount of work that the solver does by itself; the same work gives the
            same placement on every machine.
        seconds: of wall time, after which it returns the best so far; None = no clock.
        seed: of random choices; the same seed and effort give the same placement without a clock.
        report: called with every better solution while a portfolio works.
    """

    effort: float = 1.0
    seconds: float | None = None
    seed: int = 0
    report: Report | None = None


NO_CLOCK = Search()
"""The solver's own amount of work, on every machine the same."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A placement that obeys the rules of its problem.

    Attributes:
        cost_L: float64 [L], the problem's objective.
        prove: proves :attr:`bound_L`; called when that is read, as it takes seconds to compile.
        solver: its name.
        limit_reached: whether the solver stopped for a limit or an interruption, with work left to do.
        wall_s: seconds it took.
        interrupted: whether it was an interruption (Ctrl-C).
    """

    placement: Placement
    cost_L: Floats
    solver: str
    limit_reached: bool
    wall_s: float
    prove: Callable[[], Floats]
    interrupted: bool = False

    @property
    def bound_L(self) -> Floats:
        """float64 [L], proven: no placement that obeys the rules costs less."""
        return self.prove()

    @property
    def cost(self) -> float:
        """The objective: the sum over layers, which a token passes one after another."""
        return float(self.cost_L.sum())

    @property
    def bound(self) -> float:
        """No placement costs less."""
        return float(self.bound_L.sum())

    @property
    def gap_L(self) -> Floats:
        """float64 [L], how far above its bound each layer is: cost / bound − 1; 0 where both are 0."""
        return _gap(self.cost_L, self.bound_L)

    @property
    def gap(self) -> float:
        """How far the whole is above its bound: cost / bound − 1."""
        return float(_gap(np.array([self.cost]), np.array([self.bound]))[0])


Report = Callable[[Solution], None]
"""Called with every better solution while a solver works."""


class Solve(Protocol):
    """A solver: from a problem to a solution."""

    def __call__(self, problem: Problem, search: Search = NO_CLOCK) -> Solution:
        """Solve ``problem``.

        Raises:
            PlacementError: the solver cannot obey the problem's rules, or lacks what it needs.
        """
        ...


def solution(
    problem: Problem,
    placement: Placement,
    solver: str,
    started: float,
    proven_L: Floats | None = None,
    *,
    limit_reached: bool = False,
    interrupted: bool = False,
) -> Solution:
    """Check and evaluate a placement, to be bounded when somebody asks.

    Args:
        started: ``time.perf_counter()`` when the solver began.
        proven_L: a bound that the solver has proven, at least ``judging.bounds.bound_L``, which it is
            where the solver gives none.

    Raises:
        PlacementError: the placement breaks a rule of the problem.
    """
    check_obeys(problem, placement)
    cost = cost_L(problem, placement)
    wall_s = time.perf_counter() - started

    @functools.cache
    def prove() -> Floats:
        proven = bound_L(problem) if proven_L is None else proven_L
        # What is summed in another order differs in the last bits; a bound that is reached is not above.
        return np.where(proven <= cost * (1 + 1e-9), np.minimum(proven, cost), proven)

    return Solution(placement, cost, solver, limit_reached or interrupted, wall_s, prove, interrupted)


def _gap(cost: Floats, bound: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        gap: Floats = np.where(cost == bound, 0.0, cost / bound - 1.0)
    return gap
