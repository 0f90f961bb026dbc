"""Solve a placement problem and judge the answer beside what everyone runs: ``moesim.place/1``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import PlacementError
from moesim.studies.loads import Source
from moesim.studies.place_question import Question
from moesim.studies.trial import Trial
from placement.judging.evaluation import cost_L
from placement.judging.judge import judge
from placement.judging.migration import MigrationPlan, plan_migration
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.solvers.eplb import variant
from placement.solvers.relabelling import relabelled
from placement.solvers.solution import NO_CLOCK, Search, Solution
from placement.solvers.solvers import solver_named

BASELINES = ("linear", "eplb")
"""Laid beside every result: where servers start, and what they balance with."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Candidates:
    """The placements that are compared, before and after the search.

    Attributes:
        problem: on the loads that solvers see.
        unseen: on those that were kept back; None where nothing was.
        others: the baselines that the problem admits, and the previous placement.
        notes: which baselines it does not.
    """

    problem: Problem
    unseen: Problem | None
    others: Mapping[str, Placement]
    notes: tuple[str, ...]


def candidates(question: Question, source: Source, bench: Trial | None = None) -> Candidates:
    """The problem, and what every result is compared with. Baselines may move whatever they like
    and hold an expert twice on a GPU.

    Raises:
        MoesimError: the problem contradicts itself, the loads do not suffice for it, or a candidate does
            not fit the bench.
    """
    problem = question.problem(source.seen, source.layers)
    free = replace(problem, previous=None, max_moves=None, distinct=False)
    others, notes = {}, []
    for name in BASELINES:
        try:
            others[name] = solver_named(name).solve(free).placement
        except PlacementError as error:
            notes.append(f"no {name} beside it: {error}")
    if question.previous is not None:
        others["previous"] = question.previous
    if bench is not None:
        for placement in others.values():
            bench.deployment(placement)
    return Candidates(problem, _unseen(question, source), others, tuple(notes))


def _unseen(question: Question, source: Source) -> Problem | None:
    if source.unseen is None:
        return None
    try:
        return replace(question, max_moves=None).problem(source.unseen, source.layers)
    except PlacementError as error:
        error.file, error.field = source.file, f"{source.unseen.what}, kept back: {error.field}"
        raise


def search(problem: Problem, name: str, fitted_on: str, how: Search = NO_CLOCK) -> Solution:
    """The placement of one solver, as near the previous one as renaming GPUs brings it.

    Its origin tells the solver and the loads.

    Raises:
        PlacementError: no such solver, or it cannot obey the problem's rules or lacks what it needs.
    """
    found = solver_named(name).solve(problem, how)
    found.prove()  # what it compiles is part of the search
    origin = f"{found.placement.origin}, fitted on {fitted_on}"
    placement = replace(relabelled(problem, found.placement), origin=origin)
    return replace(found, placement=placement, cost_L=cost_L(problem, placement))


def answer(
    question: Question,
    source: Source,
    compared: Candidates,
    found: Solution,
    *,
    bench: Trial | None = None,
    expert_bytes_LE: NDArray[np.float64] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Answer:
    """What ``moesim place --json`` prints.

    Args:
        bench: where the candidates are simulated.
        expert_bytes_LE: of the experts of each layer, where the model is known.
        progress: called after each simulated candidate.

    Raises:
        MoesimError: the placement does not fit the bench.
    """
    problem = compared.problem
    verdict = judge(problem, found.placement)
    notes = [*compared.notes]
    without = question.gpus - len(np.unique(found.placement.slot_gpu_S))
    if without:
        notes.append(f"{without} of {question.gpus} GPUs hold no expert: there are {problem.slots} slots")
    linear = compared.others.get("linear")
    if found.solver != "linear" and linear is not None and _same(linear, found.placement):
        notes.append(f"{found.solver} found nothing to do: the result is the linear placement")
    value: Answer = {
        "format": "moesim.place/1",
        **verdict.to_dict(),
        "objective": question.aim,
        "lower_bound": found.bound,
        "gap": _finite(found.gap),
        "solver": found.solver,
        "limit_reached": found.limit_reached,
        "interrupted": found.interrupted,
        "wall_s": found.wall_s,
        "fitted_on": source.seen.what,
        "gpus": question.gpus,
        "nodes": question.nodes,
        "slots": problem.slots,
        "windows": problem.windows,
        "worst_window": question.worst_window,
        "eplb": {"variant": variant(problem), "groups": question.groups},
        "layers": [
            {
                "layer": layer,
                "balancedness": float(verdict.balancedness_L[row]),
                "max_load": float(verdict.max_load_L[row]),
                "cost": float(found.cost_L[row]),
                "lower_bound": float(found.bound_L[row]),
                "gap": _finite(found.gap_L[row]),
            }
            for row, layer in enumerate(problem.layers)
        ],
        "baselines": {name: _against(problem, each, found.bound) for name, each in compared.others.items()},
        "held_out": _held_out(source, compared, found.placement),
        "migration": None,
        "simulated": None,
    }
    if value["held_out"] is None:
        notes.append("nothing was kept back: how it holds on other traffic is not known")
    if bench is not None:
        value["simulated"] = _simulated(bench, {"result": found.placement, **compared.others}, progress)
        notes += bench.notes
    if question.previous is not None:
        plan = plan_migration(question.previous, found.placement, problem.node_G)
        value["migration"] = _migration(plan, problem, bench, expert_bytes_LE, value["simulated"])
    return {**value, "notes": notes}


def _same(left: Placement, right: Placement) -> bool:
    """Whether every expert is in the same slot."""
    return np.array_equal(left.slot_expert_LS, right.slot_expert_LS) and np.array_equal(
        left.slot_gpu_S, right.slot_gpu_S
    )


def _against(problem: Problem, placement: Placement, bound: float) -> Answer:
    verdict = judge(problem, placement).to_dict()
    return {**verdict, "gap": verdict["cost"] / bound - 1.0 if bound > 0 else None}


def _finite(gap: float) -> float | None:
    """None where the bound is 0 and the cost is not."""
    return float(gap) if math.isfinite(gap) else None


def _held_out(source: Source, compared: Candidates, placement: Placement) -> Answer | None:
    """The same candidates on loads that no solver has seen."""
    if source.unseen is None or compared.unseen is None:
        return None
    problem = compared.unseen
    return {
        "what": source.unseen.what,
        **judge(problem, placement).to_dict(),
        "baselines": {name: judge(problem, each).to_dict() for name, each in compared.others.items()},
    }


def _simulated(bench: Trial, placements: Mapping[str, Placement], progress: Callable[[], None]) -> Answer:
    value: Answer = {
        "scenario": bench.scenario.name,
        "replayed": bench.what,
        "steps": bench.scenario.workload.steps,
    }
    for name, placement in placements.items():
        value[name] = bench.simulate(placement)
        progress()
    return value


def _migration(
    plan: MigrationPlan,
    problem: Problem,
    bench: Trial | None,
    expert_bytes_LE: NDArray[np.float64] | None,
    simulated: Answer | None,
) -> Answer:
    """What the way from the previous placement takes, and after how many steps it has paid."""
    bytes_LGG = None if expert_bytes_LE is None else plan.bytes_LGG(expert_bytes_LE)
    value: Answer = {
        "moves": plan.moves,
        "cross_node_moves": plan.crossing(problem.node_G),
        "bytes": None if bytes_LGG is None else float(bytes_LGG.sum()),
        "seconds": None,
        "payback_steps": None,
        "transfers": plan.transfers(),
    }
    if bench is not None and simulated is not None and bytes_LGG is not None:
        value["seconds"] = seconds = bench.migration_s(bytes_LGG.sum(axis=0))
        saved_s = simulated["previous"]["step_time_s"] - simulated["result"]["step_time_s"]
        value["payback_steps"] = seconds / saved_s if saved_s > 0 else None
    return value
