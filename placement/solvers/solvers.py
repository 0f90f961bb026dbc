"""The solvers by name, and the short way from loads to a placement that scenarios take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from placement.problem.errors import PlacementError
from placement.problem.placement import MAX_EXPERTS, MAX_GPUS, MAX_SLOTS, Placement
from placement.problem.problem import Problem
from placement.solvers import one_pass
from placement.solvers.auto import portfolio
from placement.solvers.eplb import eplb
from placement.solvers.ilp import ilp
from placement.solvers.locality import locality
from placement.solvers.moetuner import moetuner
from placement.solvers.solution import NO_CLOCK, Search, Solution, Solve
from placement.solvers.swap import swap
from traces.base.arrays import Floats


@dataclass(frozen=True)
class Solver:
    """One way to place experts.

    Attributes:
        name: its name in scenarios and on the command line.
        solve: the solver itself.
        needs_load: whether it looks at loads; if not, it can place experts without a trace.
        summary: one line for the table of presets.
    """

    name: str
    solve: Solve
    needs_load: bool
    summary: str


def _where_copies_cost(problem: Problem, search: Search = NO_CLOCK) -> Solution:
    """``locality``, which gives balance for copies, where those are asked for."""
    if problem.objective.per_copy == 0:
        raise PlacementError("copies between nodes cost nothing here", field="objective.per_copy")
    return locality(problem, search)


def _where_time_is_given(problem: Problem, search: Search = NO_CLOCK) -> Solution:
    """``ilp``, which may take minutes, where somebody has said how long to search."""
    if search.seconds is None:
        raise PlacementError("needs a time limit in a portfolio", field="time_limit")
    return ilp(problem, search)


_ALL = (
    Solver("linear", one_pass.linear, False, "experts in order over the slots: where SGLang and vLLM start"),
    Solver("round_robin", one_pass.round_robin, False, "expert e on GPU e mod G, as vLLM's round_robin"),
    Solver(
        "greedy",
        one_pass.greedy,
        True,
        "replicate the most loaded, then largest first on the least loaded GPU",
    ),
    Solver(
        "eplb",
        eplb,
        True,
        "DeepSeek's balancer, as servers run it: hierarchical where expert groups divide over nodes",
    ),
    Solver("swap", swap, True, "greedy, copies planned with the packing, then exchanges; near its bound"),
    Solver("ilp", ilp, True, "from swap on, integer programmes (HiGHS) layer by layer, with a proven bound"),
    Solver(
        "moetuner", moetuner, True, "MoETuner's two programmes (arXiv 2502.06643): balance, then transitions"
    ),
    Solver(
        "locality", locality, True, "experts chosen together on one node, at 1 % of swap's balance at most"
    ),
    Solver(
        "auto",
        portfolio(
            {
                "greedy": one_pass.greedy,
                "eplb": eplb,
                "swap": swap,
                "locality": _where_copies_cost,
                "ilp": _where_time_is_given,
            }
        ),
        True,
        "the best of greedy, eplb, swap, of locality where copies cost, of ilp where time is given",
    ),
)
SOLVERS = MappingProxyType({solver.name: solver for solver in _ALL})


def solver_named(name: str) -> Solver:
    """The solver called ``name``.

    Raises:
        PlacementError: there is none; the message lists those there are.
    """
    try:
        return SOLVERS[name]
    except (KeyError, TypeError) as error:
        raise PlacementError(
            f"no such solver; known: {', '.join(SOLVERS)}", field="solver", got=name
        ) from error


def solve(
    name: str,
    load_LE: npt.ArrayLike | None,
    *,
    experts: int,
    gpus: int,
    layers: tuple[int, ...],
    slots: int | None = None,
    gpus_per_node: int | None = None,
    groups: int = 1,
    model_groups: int = 1,
    sample_TLK: npt.ArrayLike | None = None,
    fitted_on: str = "",
) -> Placement:
    """Place ``experts`` of each layer on ``gpus`` that hold equally many of the ``slots``.

    No clock is looked at, so equal loads give equal placements.

    >>> solve("linear", None, experts=4, gpus=2, layers=(0,)).slot_expert_LS
    array([[0, 1, 2, 3]], dtype=int16)

    Args:
        name: a key of ``SOLVERS``.
        load_LE: [L, E] load of each expert; None will do for a solver that needs none.
        layers: true indices of the L layers, ascending.
        slots: S on all GPUs together, by default one for each expert.
        gpus_per_node: by default all GPUs are in one node.
        groups: above 1, so many groups of neighbouring experts, each with all copies on one node.
        model_groups: expert groups that the model has; ``eplb`` goes by them where they divide.
        sample_TLK: expert ids of sampled tokens, for solvers that look at which are chosen together.
        fitted_on: what the loads are of; told in ``origin``.

    Raises:
        PlacementError: an unknown solver, or one that cannot keep groups together; slots that are too few
            or do not divide over the GPUs, or groups over the nodes; loads that are missing, of another
            shape, not finite, negative, or all zero in a layer.
    """
    solver = solver_named(name)
    slots = _equal_slots(experts if slots is None else slots, experts, gpus)
    if solver.needs_load:
        load = _given_load(solver, load_LE, experts, layers)
    else:
        load = np.ones((len(layers), experts))
    sample = None if sample_TLK is None else np.asarray(sample_TLK, dtype=np.int64)
    problem = Problem.of(
        load,
        gpus,
        slots,
        layers=layers,
        gpus_per_node=gpus_per_node,
        groups=groups,
        model_groups=model_groups,
        sample_TLK=sample,
    )
    placement = solver.solve(problem).placement
    if solver.needs_load and fitted_on:
        return replace(placement, origin=f"{placement.origin}, fitted on {fitted_on}")
    return placement


def _equal_slots(slots: int, experts: int, gpus: int) -> int:
    """``slots``, if every GPU can have as many."""
    for field, value, most in (("experts", experts, MAX_EXPERTS), ("gpus", gpus, MAX_GPUS)):
        if not 1 <= value <= most:
            raise PlacementError(f"must be from 1 to {most}", field=field, got=value)
    if slots < experts:
        raise PlacementError(
            f"more experts than slots: {experts} experts need at least {_above(experts, gpus)} slots",
            field="slots",
            got=slots,
        )
    if slots % gpus:
        raise PlacementError(
            f"do not divide over {gpus} GPUs; name a number that does, such as {_above(slots, gpus)}",
            field="slots",
            got=slots,
        )
    most = min(experts * gpus, MAX_SLOTS)
    if slots > most:
        raise PlacementError(f"must be at most {most}", field="slots", got=slots)
    return slots


def _above(slots: int, gpus: int) -> int:
    """The least multiple of ``gpus`` that is not below ``slots``."""
    return -(-slots // gpus) * gpus


def _given_load(
    solver: Solver, load_LE: npt.ArrayLike | None, experts: int, layers: tuple[int, ...]
) -> Floats:
    """float64 [L, E]; what the loads themselves must be, the problem checks."""
    if load_LE is None:
        without = ", ".join(other.name for other in _ALL if not other.needs_load)
        raise PlacementError(
            f"{solver.name} needs expert loads: give a trace or a load table, or use one of {without}",
            field="solver",
        )
    load = np.asarray(load_LE, dtype=np.float64)
    if load.shape != (len(layers), experts):
        raise PlacementError(
            f"must have shape [{len(layers)} layers, {experts} experts]", field="load", got=load.shape
        )
    return load
