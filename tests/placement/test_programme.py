"""Integer programmes: what each backend answers, and what is claimed of the answer."""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import pulp
import pytest

from placement.problem.errors import PlacementError
from placement.solvers import programme as module
from placement.solvers.programme import (
    BACKENDS,
    Effort,
    Outcome,
    amounts,
    binaries,
    load_backends,
    solve_programme,
    values,
)
from placement.solvers.solution import Search

PRICE, WEIGHT = [3.0, 4.0, 5.0], [2.0, 3.0, 4.0]


def knapsack(at_least: float) -> tuple[pulp.LpProblem, module.Variables]:
    """The cheapest of three things that weigh so much together."""
    programme = pulp.LpProblem("knapsack")
    taken = binaries(programme, "taken", 3)
    programme += pulp.lpDot(PRICE, taken)
    programme += pulp.lpDot(WEIGHT, taken) >= at_least
    return programme, taken


def packing(items: int, bins: int) -> pulp.LpProblem:
    """The least largest load: easy to begin with, long to prove."""
    weight = np.random.default_rng(0).lognormal(size=items).tolist()
    programme = pulp.LpProblem("packing")
    on, most = binaries(programme, "on", items, bins), programme.add_variable("most", 0)
    programme += most
    for item in range(items):
        programme += pulp.lpSum(on[item]) == 1
    for each in on.T:
        programme += pulp.lpDot(weight, each) <= most
    return programme


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_optimum_is_found_and_proven(backend: str) -> None:
    programme, taken = knapsack(5)
    assert solve_programme(programme, Effort(100, backend=backend)) == Outcome(7.0, 7.0, True)
    assert values(taken).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_has_no_solution_is_proven_to_have_none(backend: str) -> None:
    programme, _ = knapsack(9.5)
    assert solve_programme(programme, Effort(100, backend=backend)) == Outcome(None, math.inf, True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_limit_of_nodes_is_not_called_optimal(backend: str) -> None:
    programme = packing(40, 5)
    outcome = solve_programme(programme, Effort(1, backend=backend))
    assert not outcome.proven
    assert outcome.value is None or outcome.bound < outcome.value
    again = solve_programme(packing(40, 5), Effort(1, backend=backend))
    assert again == outcome


def test_values_keep_the_shape_of_their_variables() -> None:
    programme = pulp.LpProblem("shape")
    share = amounts(programme, "share", 2, 3)
    programme += pulp.lpSum(share.ravel())
    for number, variable in enumerate(share.ravel()):
        programme += variable >= number
    assert solve_programme(programme, Effort(1)).value == 15.0
    assert values(share).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_a_deadline_that_is_past_leaves_no_time() -> None:
    effort = Effort.within(Search(seconds=0.5), nodes=10, started=time.perf_counter() - 1.0)
    assert effort.seconds == 0.0
    assert solve_programme(knapsack(5)[0], effort) == Outcome(None, -math.inf, False)
    assert Effort.within(Search(effort=2.0), nodes=10, started=0.0) == Effort(20)


def test_an_unknown_or_missing_backend_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlacementError) as unknown:
        Effort(1, backend="gurobi")
    assert str(unknown.value) == "backend: no such solver of programmes; known: highs, cbc (got 'gurobi')"
    monkeypatch.setattr(pulp.HiGHS, "available", lambda self: False)
    with pytest.raises(PlacementError) as missing:
        solve_programme(knapsack(5)[0], Effort(1))
    assert str(missing.value) == (
        "backend: the solver is not installed: pip install 'highspy', or choose cbc (got 'highs')"
    )


def test_an_interruption_stops_the_solver_and_is_passed_on() -> None:
    calls = []

    class Interrupted:
        HandleUserInterrupt = False

        def startSolve(self) -> None:
            calls.append("start")

        def wait(self, timeout: float | None = None) -> tuple[bool, None]:
            calls.append("wait")
            if timeout is not None:
                raise KeyboardInterrupt
            return True, None

        def cancelSolve(self) -> None:
            calls.append("cancel")

    highs = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        module._run(highs)
    assert calls == ["start", "wait", "cancel", "wait"]
    assert highs.HandleUserInterrupt


def test_an_interruption_while_highs_loads_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupts:
        """Ctrl-C while highspy is imported, once."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "highspy":
                sys.meta_path.remove(self)
                raise KeyboardInterrupt

    for name in ("highspy", "pulp"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupts(), *sys.meta_path])
    with pytest.raises(KeyboardInterrupt):
        load_backends()
