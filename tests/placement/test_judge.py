"""Verdicts: four formulas by loops, costs by hand, copies across nodes by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.judging.balancedness import FORMULAS, gpu_load_WLG, slot_load_WLS
from placement.judging.judge import judge
from placement.problem.objective import Objective
from placement.problem.placement import EMPTY, Placement
from placement.problem.problem import Problem
from tests.placement.random_placements import placements
from tests.tolerance import rounding


@given(placements(), st.data())
def test_formulas_are_those_of_the_systems(placement: Placement, data: st.DataObject) -> None:
    """Every formula as the systems compute it, slot by slot and GPU by GPU."""
    layers, experts = len(placement.layers), placement.experts
    windows = data.draw(st.integers(1, 3))
    size = windows * layers * experts
    values = data.draw(st.lists(st.integers(0, 50), min_size=size, max_size=size))
    load_WLE = np.array(values).reshape(windows, layers, experts)
    sglang, vllm, imbalance, slots = [], [], [], []
    for load_LE in load_WLE:
        mean_sum = max_sum = slot_mean_sum = slot_max_sum = 0.0
        for row in range(layers):
            gpus, held = [0.0] * placement.gpus, []
            for slot, expert in enumerate(placement.slot_expert_LS[row].tolist()):
                load = 0.0
                if expert != EMPTY:
                    load = load_LE[row, expert] / (placement.slot_expert_LS[row] == expert).sum()
                gpus[placement.slot_gpu_S[slot]] += load
                held.append(load)
            mean, most = sum(gpus) / len(gpus), max(gpus)
            sglang.append((mean + 1e-5) / (most + 1e-5))
            imbalance.append((most - mean) / mean if mean else 0.0)
            mean_sum, max_sum = mean_sum + mean, max_sum + most
            slot_mean_sum, slot_max_sum = slot_mean_sum + sum(held) / len(held), slot_max_sum + max(held)
        vllm.append(mean_sum / max_sum if max_sum else 1.0)
        slots.append(slot_mean_sum / slot_max_sum if slot_max_sum else 1.0)
    loads = gpu_load_WLG(placement, load_WLE), slot_load_WLS(placement, load_WLE)
    naive = {"sglang": sglang, "vllm": vllm, "trtllm_imbalance": imbalance, "slots": slots}
    for name, found in naive.items():
        assert FORMULAS[name](*loads) == pytest.approx(np.mean(found), rel=rounding(1000), abs=rounding(1000))


PAIRED = Placement(np.array([[0, 1, 2, 3], [0, 2, 1, 3]]), np.array([0, 0, 1, 1]), 4, 2, (3, 4))


def test_loads_are_added_up_over_layers() -> None:
    problem = Problem.of([[[4, 3, 2, 1], [1, 1, 1, 1]], [[0, 1, 4, 5], [2, 2, 2, 2]]], 2, layers=(3, 4))
    verdict = judge(problem, PAIRED)
    assert verdict.max_load_L.tolist() == [(7 + 9) / 2, (2 + 4) / 2]
    assert verdict.cost_L.tolist() == verdict.max_load_L.tolist()
    worst = Problem.of(problem.load_WLE, 2, layers=(3, 4), objective=Objective(worst_window=True))
    assert judge(worst, PAIRED).max_load_L.tolist() == [9, 4]
    assert verdict.moved_experts is None
    found = verdict.to_dict()
    assert (found["max_load"], found["cross_node_fraction"]) == (11.0, 0.0)


def test_moves_are_counted_from_the_previous_placement() -> None:
    previous = Placement(np.array([[0, 1, 2, 3], [0, 1, 2, 3]]), np.array([0, 0, 1, 1]), 4, 2, (3, 4))
    problem = Problem.of(np.ones((2, 4)), 2, layers=(3, 4), previous=previous)
    assert judge(problem, PAIRED).moved_experts == 2


def test_copies_across_nodes_are_counted_for_every_home() -> None:
    sample_TLK = np.array(list(itertools.permutations(range(4), 2)))[:, None].repeat(2, axis=1)
    load = np.ones((2, 4))
    problem = Problem.of(load, 2, layers=(3, 4), gpus_per_node=1, sample_TLK=sample_TLK)
    node_of = {(0, 0): 0, (0, 1): 0, (0, 2): 1, (0, 3): 1, (1, 0): 0, (1, 2): 0, (1, 1): 1, (1, 3): 1}
    copies = 0
    for token, row, home in itertools.product(range(len(sample_TLK)), range(2), range(2)):
        nodes = {node_of[row, expert] for expert in sample_TLK[token, row].tolist()}
        copies += len(nodes - {home})
    expected = copies / (len(sample_TLK) * 2 * 2 * 2)
    assert judge(problem, PAIRED).cross_node_fraction == pytest.approx(expected, rel=rounding(1000))
    blind = Problem.of(load, 2, layers=(3, 4), gpus_per_node=1)
    assert judge(blind, PAIRED).cross_node_fraction is None
