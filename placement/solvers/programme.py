"""Solving an integer programme through PuLP: HiGHS or CBC, stopped by work, with what was proven.

PuLP's own report does not suffice: it says "Optimal" at a time limit, and knows no name for HiGHS's stop at
a number of nodes. So HiGHS is asked itself here.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from placement.problem.errors import PlacementError
from placement.solvers.quiet import quiet
from placement.solvers.solution import Search
from traces.base.arrays import Floats

if TYPE_CHECKING:
    import pulp

Variables = npt.NDArray[np.object_]

BACKENDS = ("highs", "cbc")

TOLERANCE = 1e-6
"""Of both backends, on rows and whole numbers: programmes should be scaled to about 1."""

_TICK_S = 0.1  # how long Ctrl-C may wait
_MOST_NODES = 2**31 - 1  # of a C int


@dataclass(frozen=True)
class Effort:
    """How to solve programmes, and when to stop.

    Attributes:
        nodes: branch-and-bound nodes of each. The same nodes give the same answer on any day.
        deadline: ``time.perf_counter()`` at which all must have stopped; where it comes first, results do
            not repeat. None = no clock.
        backend: one of ``BACKENDS``.
    """

    nodes: int
    deadline: float | None = None
    backend: str = "highs"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise PlacementError(
                f"no such solver of programmes; known: {', '.join(BACKENDS)}",
                field="backend",
                got=self.backend,
            )

    @classmethod
    def within(cls, search: Search, nodes: int, started: float, backend: str = "highs") -> Effort:
        """What a solver that began at ``started`` may spend, with ``nodes`` for a programme by itself."""
        deadline = None if search.seconds is None else started + search.seconds
        return cls(min(max(1, round(nodes * search.effort)), _MOST_NODES), deadline, backend)

    @property
    def seconds(self) -> float | None:
        """What is left of the time; 0 when it is up."""
        return None if self.deadline is None else max(0.0, self.deadline - time.perf_counter())

    @property
    def over(self) -> bool:
        """Whether the time is up, so that no programme is worth writing down."""
        return self.seconds == 0


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


def load_backends() -> None:
    """Import PuLP, and before it HiGHS: PuLP would take a Ctrl-C in the midst of that for its absence."""
    with contextlib.suppress(ImportError):
        import highspy  # noqa: F401
    import pulp  # noqa: F401


def binaries(programme: pulp.LpProblem, name: str, *shape: int) -> Variables:
    """0-1 variables as an array."""
    return _variables(programme, name, shape, "Binary")


def amounts(programme: pulp.LpProblem, name: str, *shape: int) -> Variables:
    """Variables from 0 on as an array."""
    return _variables(programme, name, shape, "Continuous")


def _variables(programme: pulp.LpProblem, name: str, shape: tuple[int, ...], kind: str) -> Variables:
    nested = programme.add_variable_matrix(name, tuple(map(range, shape)), lowBound=0, cat=kind)
    return np.array(nested)


def values(variables: Variables) -> Floats:
    """What solving gave them."""
    found = np.array([variable.value() for variable in variables.ravel()], dtype=np.float64)
    return found.reshape(variables.shape)


def solve_programme(programme: pulp.LpProblem, effort: Effort) -> Outcome:
    """Minimise, within ``TOLERANCE``.

    Raises:
        PlacementError: the backend is not installed.
        KeyboardInterrupt: asked to stop; the solver has stopped.
    """
    if effort.over:
        return Outcome(None, -math.inf, False)
    solve = _highs if effort.backend == "highs" else _cbc
    with quiet():
        return solve(programme, effort.nodes, effort.seconds)


def _highs(programme: pulp.LpProblem, nodes: int, seconds: float | None) -> Outcome:
    import pulp

    solver = pulp.HiGHS(
        msg=False, threads=1, gapRel=0.0, timeLimit=seconds, mip_max_nodes=nodes, random_seed=0
    )
    _require(solver, "highs", "highspy")
    import highspy

    solver.createAndConfigureSolver(programme)
    solver.buildSolverModel(programme)
    highs = programme.solverModel
    _run(highs)
    status, info = highs.getModelStatus(), highs.getInfo()
    known = highspy.HighsModelStatus
    if status in (known.kInfeasible, known.kUnboundedOrInfeasible):
        return Outcome(None, math.inf, True)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Outcome(None, info.mip_dual_bound, False)
    for variable, value in zip(programme.variables(), highs.getSolution().col_value, strict=True):
        variable.varValue = value
    return Outcome(info.objective_function_value, info.mip_dual_bound, status == known.kOptimal)


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


def _cbc(programme: pulp.LpProblem, nodes: int, seconds: float | None) -> Outcome:
    import pulp

    # The one that PuLP brings.
    path = pulp.PULP_CBC_CMD.pulp_cbc_path
    solver = pulp.COIN_CMD(msg=False, path=path, gapRel=0.0, timeLimit=seconds, maxNodes=nodes)
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
