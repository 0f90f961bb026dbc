"""Bounds: never above the cheapest of all placements, and as sharp as they are said to be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.judging.bounds import bound_L, window_loads
from placement.judging.evaluation import cost_L
from placement.judging.packing_bound import Loads
from placement.problem.errors import PlacementError
from placement.problem.objective import Objective
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.problem.rules import check_obeys
from placement.solvers.lp_bound import lp_bound, sharpened
from placement.solvers.pairs import ruled_out
from placement.solvers.programme import Effort
from placement.solvers.swap import swap
from tests.examples import examples
from tests.placement.tiny_problems import every_placement, naive_cost, problems


@settings(max_examples=examples(60))
@given(problems())
def test_no_placement_is_below_the_bound(problem: Problem) -> None:
    least = min(naive_cost(problem, placement) for placement in every_placement(problem))
    assert bound_L(problem)[0] <= least


@settings(max_examples=examples(25))
@given(problems())
def test_no_placement_is_below_the_sharper_bound(problem: Problem) -> None:
    least = min(naive_cost(problem, placement) for placement in every_placement(problem))
    before = swap(problem)
    found = sharpened(problem, before)
    assert found.bound_L[0] >= before.bound_L[0]
    assert found.bound_L[0] <= least * (1 + 1e-9)


@settings(max_examples=examples(25))
@given(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), st.integers(4, 6))
def test_the_bound_of_strict_groups_is_not_above_them(load: list[int], slots: int) -> None:
    problem = Problem.of([load], 2, [slots - slots // 2, slots // 2], gpus_per_node=1, groups=4)
    costs = []
    for placement in every_placement(problem):
        try:
            check_obeys(problem, placement)
        except PlacementError:
            continue
        costs.append(naive_cost(problem, placement))
    assert bound_L(problem)[0] <= min(costs)


@settings(max_examples=examples(25))
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2, unique=True), min_size=1, max_size=4),
    st.booleans(),
)
def test_the_bound_of_copies_across_nodes_is_not_above_them(tokens: list[list[int]], at_home: bool) -> None:
    sample_TLK = np.array(tokens)[:, None]
    problem = Problem.of(
        [[1.0] * 4],
        2,
        [3, 2],
        gpus_per_node=1,
        sample_TLK=sample_TLK,
        home_T=np.zeros(len(tokens), dtype=int) if at_home else None,
        objective=Objective(per_token=0, per_copy=1),
    )
    assert bound_L(problem)[0] <= min(cost_L(problem, placement)[0] for placement in every_placement(problem))


def naive_packing_bound(load: list[float], gpus: int, each: int) -> float:
    """Without copies: the B largest loads lie on B GPUs at most, and share them with the smallest."""
    ascending = sorted(load)
    bounds = []
    for largest in range(1, gpus + 1):
        company = (each - 1) * largest
        bounds.append((sum(ascending[-largest:]) + sum(ascending[:company])) / largest)
    return max(bounds)


@given(st.integers(0, 10_000))
def test_without_copies_it_finds_the_company_of_the_largest(seed: int) -> None:
    load_E = np.random.default_rng(seed).lognormal(0, 1, size=24)
    problem = Problem.of([load_E], 4)
    expected = naive_packing_bound(load_E.tolist(), 4, 6)
    assert bound_L(problem)[0] == pytest.approx(expected, rel=0.02)
    assert bound_L(problem)[0] <= expected * (1 + 1e-9)


def test_a_large_expert_is_bounded_by_its_copies_and_their_company() -> None:
    # 100 in 3 copies at most, with one of the others beside each: 33.3 + 1 of 10 tokens, at the least 34.3.
    load_E = [100.0, 1.0, 1.0, 1.0]
    problem = Problem.of([load_E], 3, 6)
    assert bound_L(problem)[0] == pytest.approx(103 / 3, rel=1e-4)
    # With one spare slot: 50 and nothing beside it that is below 1.
    problem = Problem.of([[100.0, 4.0, 4.0, 4.0, 4.0]], 3, 6)
    assert bound_L(problem)[0] == pytest.approx(54.0, rel=0.02)


def test_blends_are_sharper_where_every_gpu_has_two_slots() -> None:
    load_E = np.arange(1, 65.0) ** -0.6
    problem = Problem.of([load_E], 36, 72)
    found = swap(problem)
    sharper = sharpened(problem, found)
    assert found.bound_L[0] < sharper.bound_L[0] <= found.cost_L[0]


@settings(max_examples=examples(25))
@given(st.lists(st.integers(1, 30), min_size=3, max_size=5), st.integers(0, 3))
def test_pairs_are_ruled_out_below_the_best_fold_and_not_above(load: list[int], spare: int) -> None:
    gpus = (len(load) + spare + 1) // 2
    slots, least = 2 * gpus, np.inf
    for copies_E in itertools.product(range(1, slots - len(load) + 2), repeat=len(load)):
        if sum(copies_E) <= slots:
            shares = sorted(np.repeat(np.array(load) / copies_E, copies_E), reverse=True)
            order = np.array(shares + [0.0] * (slots - len(shares)))
            least = min(least, float((order + order[::-1]).max()))
    loads = Loads(np.array(load, dtype=np.float64), np.zeros(len(load)), 0.0)
    most = slots - len(load) + 1
    assert ruled_out(loads, gpus, most, 0.999 * least, Effort(100))
    assert not ruled_out(loads, gpus, most, 1.001 * least, Effort(100))


def test_pairs_close_the_gap_that_blends_leave() -> None:
    load_E = np.array([9.0, 8, 13, 9, 6, 11, 22, 17, 5, 4])
    problem = Problem.of([load_E], 6, 12)
    found = swap(problem)
    (loads,) = window_loads(problem, 0)
    most_E = np.full(10, 3)
    by_programme = lp_bound(
        loads, problem.slots_G, problem.speed_G, most_E, found.bound_L[0], found.cost_L[0]
    )
    sharper = sharpened(problem, found)
    assert by_programme < sharper.bound_L[0] <= found.cost_L[0]


def test_many_windows_are_bounded_by_their_mean() -> None:
    load_WLE = np.random.default_rng(0).lognormal(0, 1, size=(40, 1, 8))
    for worst in (False, True):
        problem = Problem.of(load_WLE, 2, objective=Objective(worst_window=worst))
        costs = [
            cost_L(problem, Placement(np.array([split + rest]), np.repeat([0, 1], 4), 8, 2, (0,)))[0]
            for split in itertools.combinations(range(8), 4)
            for rest in [tuple(set(range(8)) - set(split))]
        ]
        assert 3.99 * load_WLE.mean() < bound_L(problem)[0] <= min(costs)


def test_a_forbidding_rule_raises_the_bound() -> None:
    free = Problem.of([[8.0, 2.0, 2.0]], 3, 9)
    bound = Problem.of([[8.0, 2.0, 2.0]], 3, 9, forbidden=((0, 0, 0), (0, 0, 1)))
    assert bound_L(free)[0] == pytest.approx(4.0)
    assert bound_L(bound)[0] == pytest.approx(8.0)


def test_a_blend_starts_from_what_is_known() -> None:
    problem = Problem.of([[4.0, 3.0, 2.0, 1.0]], 2)
    (loads,) = window_loads(problem, 0)
    most_E = np.ones(4, dtype=np.int64)
    assert lp_bound(loads, problem.slots_G, problem.speed_G, most_E, 5.0, 5.0) == 5.0
