"""The published balancer against its description, written out naively, and against its measured balance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.problem.errors import PlacementError
from placement.problem.problem import Problem
from placement.problem.rules import check_obeys
from placement.solvers.eplb import eplb, kept_groups, variant
from placement.solvers.solution import Solution
from placement.solvers.solvers import solver_named
from tests.examples import examples


def naive_pack(weights: list[float], packs: int) -> list[list[int]]:
    """Items of each pack, in the order in which they came."""
    if len(weights) == packs:
        return [[item] for item in range(packs)]
    packed: list[list[int]] = [[] for _ in range(packs)]
    for item in sorted(range(len(weights)), key=lambda item: (-weights[item], item)):
        open_packs = [pack for pack in range(packs) if len(packed[pack]) < len(weights) // packs]
        best = min(open_packs, key=lambda pack: (sum(weights[other] for other in packed[pack]), pack))
        packed[best].append(item)
    return packed


def naive_eplb(load: list[float], slots: int, gpus: int, nodes: int, groups: int) -> list[int]:
    """The expert in each slot."""
    size = len(load) // groups
    group_load = [sum(load[group * size : (group + 1) * size]) for group in range(groups)]
    held = []
    for node_groups in naive_pack(group_load, nodes):
        experts = [group * size + i for group in node_groups for i in range(size)]
        copies = dict.fromkeys(experts, 1)
        copy_of = list(experts)
        while len(copy_of) < slots // nodes:
            best = max(experts, key=lambda expert: load[expert] / copies[expert])
            copies[best] += 1
            copy_of.append(best)
        shares = [load[expert] / copies[expert] for expert in copy_of]
        held += [copy_of[copy] for pack in naive_pack(shares, gpus // nodes) for copy in pack]
    return held


@settings(max_examples=examples(40))
@given(st.data())
def test_it_is_its_description(data: st.DataObject) -> None:
    nodes, per_node = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    groups = nodes * data.draw(st.integers(1, 2))
    size = data.draw(st.integers(1, 4)) * per_node
    experts, gpus = groups * size, nodes * per_node
    slots = experts + gpus * data.draw(st.integers(0, 3))
    # Different loads whose sums differ, so that rounding decides nothing.
    load = np.random.default_rng(data.draw(st.integers(0, 999))).lognormal(0, 1, size=experts)
    if slots % gpus:
        slots += gpus - slots % gpus
    problem = Problem.of([load], gpus, slots, gpus_per_node=per_node, groups=groups)
    placement = eplb(problem).placement
    assert placement.slot_expert_LS[0].tolist() == naive_eplb(load.tolist(), slots, gpus, nodes, groups)


def test_it_is_the_original_on_its_example() -> None:
    """The example of EPLB's README: two layers, 4 groups of 3 experts, 16 slots on 8 GPUs in 2 nodes."""
    load_LE = [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
    placement = eplb(Problem.of(load_LE, 8, 16, gpus_per_node=4, groups=4)).placement
    assert placement.slot_expert_LS.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]


@pytest.mark.parametrize(
    ("groups", "gpus_per_node", "kept", "way"),
    [
        (4, 4, 4, "hierarchical"),
        (4, 8, 4, "global"),  # one node: groups order the experts, and nothing is kept apart
        (3, 4, 1, "global"),
        (1, 4, 1, "global"),
        (4, [2, 6], 1, "global"),
    ],
)
def test_it_goes_by_the_models_groups_where_they_divide(
    groups: int, gpus_per_node: Any, kept: int, way: str
) -> None:
    load_LE = np.random.default_rng(0).lognormal(size=(2, 12))
    free = Problem.of(load_LE, 8, 16, gpus_per_node=gpus_per_node, model_groups=groups)
    assert (kept_groups(free), variant(free)) == (kept, way)
    found = eplb(free)
    assert found.placement.origin == f"eplb, {way}"
    nodes = 8 // gpus_per_node if kept > 1 else 1
    for load_E, slot_expert_S in zip(load_LE.tolist(), found.placement.slot_expert_LS.tolist(), strict=True):
        assert slot_expert_S == naive_eplb(load_E, 16, 8, nodes, kept)


def test_groups_of_the_model_must_divide_its_experts() -> None:
    with pytest.raises(PlacementError, match=r"model_groups: must divide 12 experts \(got 5\)"):
        Problem.of(np.ones((1, 12)), 4, model_groups=5)


def test_copies_that_must_be_distinct_are() -> None:
    """One expert has nearly all load: both spare slots go to it, and two copies to one GPU of two."""
    load_LE = [[97.0, 1, 1, 1]]
    assert eplb(Problem.of(load_LE, 2, 8)).placement.slot_expert_LS.tolist()[0].count(0) == 5
    strict = Problem.of(load_LE, 2, 8, distinct=True)
    with pytest.raises(
        PlacementError, match=r"layer 0: GPU \d must hold one copy of expert 0 only; name ano"
    ):
        eplb(strict)
    for slot_expert_S in solver_named("auto").solve(strict).placement.slot_expert_LS.reshape(2, 4).tolist():
        assert len({*slot_expert_S}) == 4


def test_with_one_slot_on_each_gpu_experts_stay_in_order() -> None:
    placement = eplb(Problem.of([[1.0, 9.0, 4.0]], 3)).placement
    assert placement.slot_expert_LS.tolist() == [[0, 1, 2]]


def balancedness(problem: Problem, found: Solution) -> float:
    return float((problem.load_WLE[0].sum(axis=1) / problem.gpus / found.cost_L).mean())


@pytest.mark.parametrize(
    ("slots", "gpus", "nodes", "zipf", "lognormal"),
    [
        (256, 32, 4, 0.186, 0.720),
        (256, 32, 1, 0.186, 0.746),
        (288, 32, 4, 0.719, 0.933),
        (288, 32, 1, 0.9946, 0.9951),
        (320, 64, 8, 0.394, 0.731),
        (288, 72, 1, 0.884, 0.982),
        (288, 144, 1, 0.487, 0.760),
    ],
)
def test_it_reaches_what_was_measured_of_the_original(
    slots: int, gpus: int, nodes: int, zipf: float, lognormal: float
) -> None:
    """Means over 58 layers of 256 experts and 3 seeds, loads of Zipf's law and log-normal with σ = 1."""
    for family, expected, room in (("zipf", zipf, 0.005), ("lognormal", lognormal, 0.03)):
        found = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            if family == "zipf":
                load_LE = np.stack([rng.permutation(1 / np.arange(1.0, 257.0)) for _ in range(58)])
            else:
                load_LE = rng.lognormal(0, 1, size=(58, 256))
            problem = Problem.of(
                load_LE, gpus, slots, gpus_per_node=gpus // nodes, groups=8 if nodes > 1 else 1
            )
            found.append(balancedness(problem, eplb(problem)))
        assert np.mean(found) == pytest.approx(expected, abs=room)


def test_nodes_may_be_numbered_in_any_order() -> None:
    load_LE = np.random.default_rng(0).lognormal(size=(2, 16))
    in_turn = Problem.of(load_LE, 4, 20, gpus_per_node=2, groups=4)
    mixed = Problem(
        in_turn.load_WLE, (0, 1), in_turn.slots_G, np.array([1, 0, 1, 0]), in_turn.speed_G, groups=4
    )
    check_obeys(mixed, eplb(mixed).placement)
    np.testing.assert_allclose(eplb(mixed).cost_L, eplb(in_turn).cost_L)


def test_unequal_gpus_and_nodes_are_refused() -> None:
    with pytest.raises(PlacementError, match="slots: eplb needs equally many slots on each GPU"):
        eplb(Problem.of([[1.0] * 4], 2, [2, 3]))
    with pytest.raises(PlacementError, match="node: eplb needs equally many GPUs on each node"):
        eplb(Problem.of([[1.0] * 6], 3, gpus_per_node=[1, 2], slots=9, groups=2))
