"""Solving an integer programme through PuLP: HiGHS or CBC, stopped by work, with what was proven.

PuLP's own report does not suffice: it says "Optimal" at a time limit, and knows no name for HiGHS's stop at
a number of nodes. So HiGHS is asked itself here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from placement.errors import PlacementError

if TYPE_CHECKING:
    import pulp

BACKENDS = ("highs", "cbc")

_TICK_S = 0.1  # how long Ctrl-C may wait


@dataclass(frozen=True)
class Effort:
    """How to solve, and when to stop.

    Attributes:
        backend: one of ``BACKENDS``.
        nodes: branch-and-bound nodes of one programme. The same nodes give the same answer on any day.
        seconds: of one programme, where a clock must decide; results then do not repeat.
    """

    backend: str = "highs"
    nodes: int = 1000
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise PlacementError(
                f"no such solver of programmes; known: {known}", field="backend", got=self.backend
            )
        if isinstance(self.nodes, bool) or not isinstance(self.nodes, int) or not 1 <= self.nodes < 2**31:
            raise PlacementError("must be a whole number from 1", field="nodes", got=self.nodes)
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise PlacementError("must be a finite number above 0", field="seconds", got=self.seconds)


@dataclass(frozen=True)
class Outcome:
    """What solving a minimisation came to.

    Attributes:
        value: objective of the solution found, which the programme's variables now hold; None without one.
        bound: no solution is below it; infinite where there is proven to be none.
        proven: the solution is optimal, or there is none; otherwise a limit was reached.
    """

    value: float | None
    bound: float
    proven: bool


def solve_programme(programme: pulp.LpProblem, effort: Effort, *, warm: bool = False) -> Outcome:
    """Minimise, within the solver's tolerances (1e-6 on integers and rows).

    Args:
        warm: whether the variables hold a solution to begin with.

    Raises:
        PlacementError: the backend is not installed.
        KeyboardInterrupt: asked to stop; the solver has stopped.
    """
    return (_highs if effort.backend == "highs" else _cbc)(programme, effort, warm)


def _highs(programme: pulp.LpProblem, effort: Effort, warm: bool) -> Outcome:
    import pulp

    options: dict[str, Any] = {"mip_max_nodes": effort.nodes, "random_seed": 0}
    solver = pulp.HiGHS(msg=False, threads=1, gapRel=0.0, timeLimit=effort.seconds, **options)
    _require(solver, "highs", "highspy")
    import highspy

    solver.createAndConfigureSolver(programme)
    solver.buildSolverModel(programme)
    highs = programme.solverModel
    variables = programme.variables()
    if warm:
        start = highspy.HighsSolution()
        start.col_value = [variable.value() for variable in variables]
        highs.setSolution(start)
    _run(highs)
    status, info = highs.getModelStatus(), highs.getInfo()
    infeasible = (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible)
    if status in infeasible:
        return Outcome(None, math.inf, True)
    optimal = status == highspy.HighsModelStatus.kOptimal
    found = optimal or info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    value = info.objective_function_value if found else None
    if found:
        for variable, number in zip(variables, highs.getSolution().col_value, strict=True):
            variable.varValue = number
    # A programme without integers has no dual bound of its own; solved, its value is the bound.
    bound = (
        info.mip_dual_bound if programme.isMIP() else (value if optimal and value is not None else -math.inf)
    )
    return Outcome(value, bound, optimal)


def _run(highs: Any) -> None:
    """Run to the end in a thread, so that Ctrl-C is heard meanwhile."""
    highs.HandleUserInterrupt = True
    highs.startSolve()
    try:
        while not highs.wait(_TICK_S)[0]:
            pass
    except KeyboardInterrupt:
        highs.cancelSolve()
        highs.wait()
        raise


def _cbc(programme: pulp.LpProblem, effort: Effort, warm: bool) -> Outcome:
    import pulp

    solver = pulp.PULP_CBC_CMD(
        msg=False, gapRel=0.0, timeLimit=effort.seconds, maxNodes=effort.nodes, warmStart=warm
    )
    _require(solver, "cbc", "pulp>=3.3.2,<4")
    programme.solve(solver)
    if programme.status == pulp.LpStatusInfeasible:
        return Outcome(None, math.inf, True)
    found = programme.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
    value = float(pulp.value(programme.objective)) if found else None
    optimal = programme.sol_status == pulp.LpSolutionOptimal
    # CBC tells its bound in its log alone.
    return Outcome(value, value if optimal and value is not None else -math.inf, optimal)


def _require(solver: Any, backend: str, package: str) -> None:
    if not solver.available():
        other = next(name for name in BACKENDS if name != backend)
        raise PlacementError(
            f"the solver is not installed: pip install '{package}', or choose {other}",
            field="backend",
            got=backend,
        )
