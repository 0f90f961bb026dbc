"""``swap`` on problems where every placement can be tried, and on every kind of rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.judging.evaluation import cost_L
from placement.problem.errors import PlacementError
from placement.problem.objective import Objective
from placement.problem.placement import EMPTY, Placement
from placement.problem.problem import Problem
from placement.problem.rules import FREE, check_obeys, held_EG, moves_L
from placement.solvers.eplb import eplb
from placement.solvers.one_pass import greedy, linear
from placement.solvers.search import from_scratch, layer_pack
from placement.solvers.solution import Search
from placement.solvers.swap import swap
from tests.examples import examples
from tests.placement.tiny_problems import every_placement, naive_cost, problems


def skewed(layers: int, experts: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).lognormal(0, 1, size=(layers, experts))


def no_twins(placement: Placement) -> bool:
    """No GPU holds an expert twice."""
    for row, slot_expert_S in enumerate(placement.slot_expert_LS):
        if np.count_nonzero(slot_expert_S != EMPTY) != np.count_nonzero(held_EG(placement, row)):
            return False
    return True


@settings(max_examples=examples(60))
@given(problems())
def test_it_is_valid_and_near_the_best_of_all_placements(problem: Problem) -> None:
    found = swap(problem)
    check_obeys(problem, found.placement)
    assert no_twins(found.placement)
    assert found.cost == pytest.approx(naive_cost(problem, found.placement))
    least = min(naive_cost(problem, placement) for placement in every_placement(problem))
    # A GPU may hold both copies of an expert in the cheapest placement; that apart, ends of descent differ.
    assert least <= found.cost * (1 + 1e-12)
    assert found.cost <= 1.5 * least + 1e-12


@settings(max_examples=examples(30))
@given(problems())
def test_the_search_counts_what_the_evaluation_does(problem: Problem) -> None:
    pack = layer_pack(problem, 0, np.full((problem.experts, problem.gpus), FREE, dtype=np.int8))
    if from_scratch(pack, 0.0, 1.0):
        held = [expert for gpu in pack.item_GK.tolist() for expert in gpu]
        slot_gpu_S = np.repeat(np.arange(problem.gpus, dtype=np.int32), pack.item_GK.shape[1])
        placement = Placement(np.array([held]), slot_gpu_S, problem.experts, problem.gpus, (0,))
        cost_W = pack.load_GW.max(axis=0)
        expected = cost_W.max() if problem.objective.worst_window else cost_W.mean()
        assert cost_L(problem, placement)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("gpus", "slots"), [(8, 64), (8, 72), (36, 72), (7, 67)])
def test_it_is_at_least_as_good_as_greedy_and_stays_near_its_bound(gpus: int, slots: int) -> None:
    problem = Problem.of(skewed(6, 64), gpus, slots)
    found = swap(problem)
    assert (found.cost_L <= greedy(problem).cost_L * (1 + 1e-9)).all()
    if slots % gpus == 0:
        assert found.cost <= eplb(problem).cost
    assert np.median(found.gap_L) < 0.02
    assert (found.placement.slot_expert_LS != EMPTY).all()


def test_without_copies_it_is_within_a_fifth_of_a_percent() -> None:
    load_LE = np.random.default_rng(3).lognormal(0, 0.5, size=(20, 128))
    found = swap(Problem.of(load_LE, 16))
    assert np.quantile(found.gap_L, 0.95) < 0.002


def test_equal_problems_give_equal_placements() -> None:
    problem = Problem.of(skewed(3, 32), 8, 40)
    assert swap(problem, Search(seed=1)).placement == swap(problem, Search(seed=2)).placement


def test_unequal_slots_and_speeds_are_used() -> None:
    problem = Problem.of(skewed(4, 64), 6, [20, 16, 12, 12, 8, 8], speed=[2, 1, 1, 1, 1, 0.5])
    found = swap(problem)
    assert np.median(found.gap_L) < 0.01
    load_LG = found.placement.gpu_load_LG(problem.load_WLE[0])
    assert (load_LG[:, 0] > load_LG[:, 5]).all()


@pytest.mark.parametrize("worst", [False, True])
def test_windows_are_seen_one_by_one(worst: bool) -> None:
    # Two windows in which different experts are hot: their mean is even, each of them is not.
    load_WLE = np.ones((2, 1, 8))
    load_WLE[0, 0, :2] = load_WLE[1, 0, 2:4] = 9.0
    problem = Problem.of(load_WLE, 4, objective=Objective(worst_window=worst))
    assert swap(problem).cost == pytest.approx(10.0)
    together = Placement(np.array([[0, 1, 2, 3, 4, 5, 6, 7]]), np.repeat(range(4), 2), 8, 4, (0,))
    assert cost_L(problem, together)[0] == pytest.approx(18.0)


def test_copies_that_cost_more_than_they_save_are_left_out() -> None:
    # Every expert gets a token of every batch: a copy is one more set of weights to read.
    objective = Objective(per_token=1e-6, per_active=1.0)
    problem = Problem.of(np.ones((1, 8)), 4, 16, active_WLE=np.ones((1, 8)), objective=objective)
    assert (swap(problem).placement.replicas_LE == 1).all()


def test_groups_stay_on_one_node_and_nodes_serve_equally_many() -> None:
    problem = Problem.of(skewed(4, 64), 8, 80, gpus_per_node=2, groups=8)
    found = swap(problem)
    check_obeys(problem, found.placement)
    assert (found.cost_L <= eplb(problem).cost_L * (1 + 1e-9)).all()
    assert found.gap < 0.1


@settings(max_examples=examples(30))
@given(st.data())
def test_rules_are_obeyed(data: st.DataObject) -> None:
    positions = st.tuples(st.just(0), st.integers(0, 3), st.integers(0, 2))
    fixed = data.draw(st.sets(positions, max_size=4))
    forbidden = data.draw(st.sets(positions, max_size=8))
    slots = data.draw(
        st.lists(st.integers(1, 4), min_size=3, max_size=3).filter(lambda slots: 4 <= sum(slots) <= 7)
    )
    rules: dict[str, Any] = {"fixed": tuple(sorted(fixed)), "forbidden": tuple(sorted(forbidden))}
    try:
        problem = Problem.of([[9, 6, 3, 2]], 3, slots, **rules)
    except PlacementError:
        free = Problem.of([[9, 6, 3, 2]], 3, slots)
        assert not any(obeys(free, rules, each) for each in every_placement(free))
        return
    check_obeys(problem, swap(problem).placement)


def obeys(problem: Problem, rules: dict[str, Any], placement: Placement) -> bool:
    held = held_EG(placement, 0)
    fixed = all(held[expert, gpu] for _, expert, gpu in rules["fixed"])
    return fixed and not any(held[expert, gpu] for _, expert, gpu in rules["forbidden"])


def test_a_tenth_of_the_moves_gains_most() -> None:
    load_LE = skewed(8, 128)
    before = linear(Problem.of(load_LE, 16))
    free = swap(Problem.of(load_LE, 16))
    problem = Problem.of(load_LE, 16, previous=before.placement, max_moves=8 * 128 // 10)
    found = swap(problem)
    assert moves_L(problem, found.placement).sum() <= 8 * 128 // 10
    assert before.cost - found.cost >= 0.8 * (before.cost - free.cost)


def test_no_moves_means_no_change() -> None:
    load_LE = skewed(2, 16)
    before = greedy(Problem.of(load_LE, 4, 20)).placement
    problem = Problem.of(load_LE[:, ::-1], 4, 20, previous=before, max_moves=0)
    found = swap(problem)
    np.testing.assert_array_equal(found.placement.slot_expert_LS, before.slot_expert_LS)


def test_a_price_of_moves_is_weighed() -> None:
    load_LE = skewed(2, 16)
    before = linear(Problem.of(load_LE, 4)).placement
    moved = []
    for price in (0.0, 0.5, 1e6):
        objective = Objective(per_move=price)
        problem = Problem.of(load_LE, 4, previous=before, objective=objective)
        found = swap(problem)
        assert found.cost <= cost_L(problem, before).sum()
        moved.append(int(moves_L(problem, found.placement).sum()))
    assert moved[0] > moved[1] > moved[2] == 0


def test_a_gpu_that_fails_is_emptied_with_few_moves() -> None:
    load_LE = skewed(3, 16)
    before = greedy(Problem.of(load_LE, 4, 24)).placement
    problem = Problem.of(load_LE, 4, [0, 8, 8, 8], previous=before, max_moves=3 * 6)
    found = swap(problem)
    check_obeys(problem, found.placement)
    assert all(not held_EG(found.placement, row)[:, 0].any() for row in range(3))


def test_what_stays_keeps_its_slot() -> None:
    before = Placement(np.array([[3, 1, 0, 2]]), np.array([0, 1, 0, 1]), 4, 2, (0,))
    problem = Problem.of([[4, 3, 2, 1]], 2, previous=before, max_moves=4)
    found = swap(problem).placement
    assert found.slot_gpu_S.tolist() == before.slot_gpu_S.tolist()
    assert found.slot_expert_LS.tolist() == before.slot_expert_LS.tolist()


def test_more_effort_is_not_worse() -> None:
    problem = Problem.of(skewed(4, 64), 36, 72)
    assert swap(problem, Search(effort=4.0)).cost <= swap(problem).cost * (1 + 1e-9)
    assert swap(problem).cost <= swap(problem, Search(effort=0.0)).cost


def test_slots_that_nothing_can_use_stay_empty() -> None:
    problem = Problem.of([[4, 3, 2]], 2, [2, 9])
    found = swap(problem).placement
    assert no_twins(found)
    assert np.count_nonzero(found.slot_expert_LS == EMPTY) >= 6


def test_copies_are_left_out_where_gpus_would_hold_two_large_ones() -> None:
    """Ten copies of the two large experts would lie on eight GPUs; eight of them reach the mean, nearly."""
    load_E = [1.0, 0.5, *(1.0 / np.arange(15, 225, 7)).tolist()]
    problem = Problem.of([load_E], gpus=8, slots=40)
    found = swap(problem)
    assert found.gap < 0.01
    assert np.isin(found.placement.slot_expert_LS, (0, 1)).sum() == 8
