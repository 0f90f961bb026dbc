"""Renaming GPUs: nothing but the moves changes, and no renaming has fewer."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.judging.evaluation import cost_L
from placement.problem.asked import Position
from placement.problem.objective import Objective
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.problem.rules import moves_L
from placement.solvers.relabelling import relabelled
from tests.tolerance import rounding


@st.composite
def problems(draw: st.DrawFn) -> tuple[Problem, Placement]:
    """A few GPUs in one or two nodes, of unequal speeds and slots, and a placement on exactly their slots."""
    gpus, nodes = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    slots_G = draw(st.lists(st.integers(1, 3), min_size=gpus, max_size=gpus))
    experts = draw(st.integers(1, sum(slots_G)))
    spare = sum(slots_G) - experts
    more = st.lists(st.integers(-1, experts - 1), min_size=spare, max_size=spare)
    slot_gpu = np.repeat(np.arange(gpus, dtype=np.int32), slots_G)

    def drawn() -> Placement:
        rows = [draw(st.permutations([*range(experts), *draw(more)])) for _ in range(2)]
        return Placement(np.array(rows), slot_gpu, experts, gpus, (0, 1))

    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    problem = Problem.of(
        rng.integers(1, 9, (2, experts)),
        gpus,
        slots_G,
        gpus_per_node=-(-gpus // nodes),
        speed=draw(st.lists(st.sampled_from([1.0, 2.0]), min_size=gpus, max_size=gpus)),
        objective=Objective(per_copy=1.0),
        sample_TLK=np.argsort(rng.random((5, 2, experts)), axis=2)[:, :, : min(2, experts)],
        previous=drawn(),
    )
    return problem, drawn()


@given(problems())
def test_costs_stay_and_no_renaming_moves_less(drawn: tuple[Problem, Placement]) -> None:
    problem, placement = drawn
    found = relabelled(problem, placement)
    assert cost_L(problem, found) == pytest.approx(cost_L(problem, placement), rel=rounding(1000))
    slots_of = [np.flatnonzero(placement.slot_gpu_S == gpu) for gpu in range(problem.gpus)]
    best_L = moves_L(problem, placement)
    for name_G in itertools.permutations(range(problem.gpus)):
        pairs = list(enumerate(name_G))
        alike = all(
            (problem.speed_G[a], problem.slots_G[a]) == (problem.speed_G[b], problem.slots_G[b])
            for a, b in pairs
        )
        # GPUs of one node stay together.
        together = len({(problem.node_G[a], problem.node_G[b]) for a, b in pairs}) == problem.nodes
        if alike and together:
            rows = placement.slot_expert_LS.copy()
            for a, b in pairs:
                rows[:, slots_of[b]] = placement.slot_expert_LS[:, slots_of[a]]
            best_L = np.minimum(best_L, moves_L(problem, replace(placement, slot_expert_LS=rows)))
    assert moves_L(problem, found).tolist() == best_L.tolist()


def test_names_matter_where_positions_are_fixed() -> None:
    previous = Placement(np.array([[0, 1]]), np.array([0, 1]), 2, 2, (0,))
    other = Placement(np.array([[1, 0]]), np.array([0, 1]), 2, 2, (0,))
    free = Problem.of([[1, 1]], 2, previous=previous)
    assert relabelled(free, other) == previous
    assert relabelled(replace(free, fixed=(Position(0, 1, 0),)), other) == other
    assert relabelled(replace(free, previous=None), other) == other


def test_nodes_are_not_exchanged_where_tokens_have_one_at_home() -> None:
    # All tokens live on node 0 and choose expert 0, which is there now and was on node 1.
    previous = Placement(np.array([[1, 0]]), np.array([0, 1]), 2, 2, (0,))
    placement = Placement(np.array([[0, 1]]), np.array([0, 1]), 2, 2, (0,))
    problem = Problem.of(
        [[2, 0]],
        2,
        gpus_per_node=1,
        objective=Objective(per_copy=1.0),
        sample_TLK=np.zeros((2, 1, 1), dtype=int),
        previous=previous,
    )
    assert relabelled(problem, placement) == previous
    assert relabelled(replace(problem, home_T=np.zeros(2, dtype=int)), placement) == placement
