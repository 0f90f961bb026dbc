"""The portfolio: the best of its members, whatever these do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from placement.problem.errors import PlacementError
from placement.problem.problem import Problem
from placement.solvers.auto import portfolio
from placement.solvers.one_pass import greedy, linear
from placement.solvers.solution import NO_CLOCK, Search, Solution
from placement.solvers.solvers import SOLVERS
from placement.solvers.swap import swap

PROBLEM = Problem.of(np.random.default_rng(0).lognormal(size=(2, 32)), 4, 40)


def refuse(problem: Problem, search: Search = NO_CLOCK) -> Solution:
    raise PlacementError("cannot", field="rule")


def interrupted(problem: Problem, search: Search = NO_CLOCK) -> Solution:
    """Has something better than linear when Ctrl-C comes."""
    assert search.report is not None
    search.report(greedy(problem))
    raise KeyboardInterrupt


def certain(problem: Problem, search: Search = NO_CLOCK) -> Solution:
    """Proves more than it finds."""
    found = linear(problem)
    return replace(found, prove=lambda: swap(problem).cost_L)


def test_it_is_never_worse_than_its_best_member() -> None:
    found = SOLVERS["auto"].solve(PROBLEM)
    for name in ("greedy", "eplb", "swap"):
        assert found.cost <= SOLVERS[name].solve(PROBLEM).cost
    assert found.solver == "auto"
    assert not found.limit_reached


def test_every_better_solution_is_reported_once() -> None:
    reports: list[Solution] = []
    auto = portfolio({"linear": linear, "swap": swap, "greedy": greedy})
    found = auto(PROBLEM, Search(report=reports.append))
    assert [each.placement.origin for each in reports] == ["auto: linear", "auto: swap"]
    assert found.placement == reports[-1].placement
    assert found.cost < reports[0].cost


def test_the_best_bound_counts_and_ends_the_search() -> None:
    found = portfolio({"swap": swap, "certain": certain, "never": interrupted})(PROBLEM)
    assert found.gap == 0.0
    assert not found.limit_reached


def test_who_cannot_obey_is_passed_over() -> None:
    assert portfolio({"refuse": refuse, "greedy": greedy})(PROBLEM).cost == greedy(PROBLEM).cost
    with pytest.raises(PlacementError, match="rule: cannot"):
        portfolio({"refuse": refuse})(PROBLEM)


def test_an_interruption_leaves_the_best_so_far() -> None:
    found = portfolio({"linear": linear, "interrupted": interrupted, "swap": swap})(PROBLEM)
    assert found.cost == greedy(PROBLEM).cost
    assert found.limit_reached


def test_an_interruption_of_a_member_ends_the_search() -> None:
    def kept(problem: Problem, search: Search = NO_CLOCK) -> Solution:
        return replace(linear(problem), limit_reached=True, interrupted=True)

    found = portfolio({"kept": kept, "greedy": greedy})(PROBLEM)
    assert found.interrupted
    assert found.cost == linear(PROBLEM).cost > greedy(PROBLEM).cost


def test_an_interruption_before_anything_is_found_is_one() -> None:
    def at_once(problem: Problem, search: Search = NO_CLOCK) -> Solution:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        portfolio({"at_once": at_once})(PROBLEM)


def test_when_time_is_up_members_are_left_out() -> None:
    found = portfolio({"linear": linear, "swap": swap})(PROBLEM, Search(seconds=0.0))
    assert found.cost == linear(PROBLEM).cost
    assert found.limit_reached
