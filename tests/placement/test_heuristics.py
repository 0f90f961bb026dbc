"""The one-pass heuristics against hand-worked examples and a naive oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.solvers.heuristics import greedy, linear, round_robin


@dataclass(frozen=True)
class Problem:
    load_LE: npt.NDArray[np.float64]
    slot_gpu_S: npt.NDArray[np.int32]
    gpus: int


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A few experts on slots in any GPU order, in unequal numbers; whole loads, so that ties are common."""
    experts, gpus, layers = draw(st.integers(1, 8)), draw(st.integers(1, 5)), draw(st.integers(1, 2))
    slots = experts + draw(st.integers(0, 10))
    loads = st.lists(st.integers(0, 6), min_size=experts, max_size=experts)
    slot_gpu = draw(st.lists(st.integers(0, gpus - 1), min_size=slots, max_size=slots))
    load_LE = np.array([draw(loads) for _ in range(layers)], dtype=np.float64)
    return Problem(load_LE, np.array(slot_gpu, dtype=np.int32), gpus)


def naive_replicas(load_E: list[float], slots: int, useful: int) -> list[int]:
    replicas = [1] * len(load_E)
    for _ in range(slots - len(load_E)):
        experts = [expert for expert, count in enumerate(replicas) if count < useful]
        experts = experts or list(range(len(load_E)))
        best = min(experts, key=lambda expert: (-load_E[expert] / replicas[expert], expert))
        replicas[best] += 1
    return replicas


def naive_greedy(load_E: list[float], slot_gpu: list[int], gpus: int) -> list[int]:
    """What :func:`greedy` says of itself, for one layer, sentence by sentence."""
    replicas = naive_replicas(load_E, len(slot_gpu), len(set(slot_gpu)))
    shares = [
        (load / count, expert) for expert, (load, count) in enumerate(zip(load_E, replicas, strict=True))
    ]
    free: list[list[int]] = [[slot for slot, of in enumerate(slot_gpu) if of == gpu] for gpu in range(gpus)]
    held: list[list[int]] = [[] for _ in range(gpus)]
    load_G = [0.0] * gpus
    slot_expert = [-1] * len(slot_gpu)
    for share, expert in sorted(shares, key=lambda pair: (-pair[0], pair[1])):
        for _ in range(replicas[expert]):
            with_room = [gpu for gpu in range(gpus) if free[gpu]]
            fresh = [gpu for gpu in with_room if expert not in held[gpu]]
            gpu = min(fresh or with_room, key=lambda gpu: (load_G[gpu], gpu))
            slot_expert[free[gpu].pop(0)] = expert
            held[gpu].append(expert)
            load_G[gpu] += share
    return slot_expert


@given(problems())
def test_greedy_is_its_description(problem: Problem) -> None:
    expected = [
        naive_greedy(load_E, problem.slot_gpu_S.tolist(), problem.gpus) for load_E in problem.load_LE.tolist()
    ]
    assert greedy(problem.load_LE, problem.slot_gpu_S, problem.gpus).tolist() == expected


@pytest.mark.parametrize("function", [linear, round_robin, greedy])
@given(problem=problems())
def test_every_expert_is_somewhere_and_no_slot_is_empty(
    function: Callable[..., npt.NDArray[np.int16]], problem: Problem
) -> None:
    layers, experts = problem.load_LE.shape
    slot_expert_LS = function(problem.load_LE, problem.slot_gpu_S, problem.gpus)
    assert slot_expert_LS.dtype == np.int16
    assert slot_expert_LS.shape == (layers, len(problem.slot_gpu_S))
    for slot_expert_S in slot_expert_LS.tolist():
        assert set(slot_expert_S) == set(range(experts))


@pytest.mark.parametrize("function", [round_robin, greedy])
@pytest.mark.parametrize(("experts", "gpus", "slots"), [(256, 32, 288), (8, 4, 12), (6, 3, 9), (10, 5, 15)])
def test_no_gpu_holds_an_expert_twice(
    function: Callable[..., npt.NDArray[np.int16]], experts: int, gpus: int, slots: int
) -> None:
    load_LE = np.random.default_rng(0).lognormal(size=(4, experts))
    slot_gpu_S = np.repeat(np.arange(gpus, dtype=np.int32), slots // gpus)
    for slot_expert_S in function(load_LE, slot_gpu_S, gpus):
        for gpu in range(gpus):
            held = slot_expert_S[slot_gpu_S == gpu]
            assert len(set(held.tolist())) == len(held)


def on_two_gpus(
    function: Callable[..., npt.NDArray[np.int16]], slot_gpu: list[int], load: list[float]
) -> list[int]:
    slots: list[int] = function(np.array([load]), np.array(slot_gpu, dtype=np.int32), 2)[0].tolist()
    return slots


def test_linear_follows_slot_order_whatever_the_gpu() -> None:
    assert on_two_gpus(linear, [1, 0, 0, 1, 0, 1], [0.0] * 4) == [0, 1, 2, 3, 0, 1]


def test_round_robin_deals_experts_in_turn() -> None:
    assert on_two_gpus(round_robin, [0, 0, 1, 1], [0.0] * 4) == [0, 2, 1, 3]
    # The slots of a GPU need not be neighbours: GPU 1 has slots 0 and 3.
    assert on_two_gpus(round_robin, [1, 0, 0, 1], [0.0] * 4) == [1, 0, 2, 3]
    # GPU 0 has one slot: expert 2 would be its turn and goes on to GPU 1.
    assert on_two_gpus(round_robin, [0, 1, 1, 1], [0.0] * 4) == [0, 1, 2, 3]
    # The redundant copy of 0 is GPU 0's turn, which holds it: GPU 1 takes it, and GPU 0 the copy of 1.
    assert on_two_gpus(round_robin, [0, 0, 0, 1, 1, 1], [0.0] * 4) == [0, 2, 1, 1, 3, 0]


def test_round_robin_without_spare_slots_is_expert_mod_gpus() -> None:
    slot_gpu_S = np.repeat(np.arange(8, dtype=np.int32), 4)
    slot_expert_LS = round_robin(np.zeros((1, 32)), slot_gpu_S, 8)
    assert (slot_expert_LS[0] % 8).tolist() == slot_gpu_S.tolist()


def test_greedy_worked_by_hand() -> None:
    # No spare slot. 9 to GPU 0, 7 to GPU 1, 5 to GPU 1 (7 < 9), 3 to GPU 0 for lack of room: 12 and 12.
    assert on_two_gpus(greedy, [0, 0, 1, 1], [9.0, 7.0, 5.0, 3.0]) == [0, 3, 1, 2]
    # Two spare slots: 8 becomes 4 + 4, then 4 becomes 2 + 2: two GPUs have no use for a third 8.
    assert on_two_gpus(greedy, [0, 0, 0, 1, 1, 1], [8.0, 4.0, 2.0, 2.0]) == [0, 1, 2, 0, 1, 3]
    # Unequal GPUs: GPU 0 has one slot, which the largest takes.
    assert on_two_gpus(greedy, [1, 0, 1, 1], [1.0, 2.0, 9.0, 3.0]) == [3, 2, 1, 0]
    # Five slots for two experts on two GPUs: the last can only repeat an expert, and goes to the larger.
    assert on_two_gpus(greedy, [0, 0, 1, 1, 1], [5.0, 1.0]) == [0, 0, 0, 1, 1]
