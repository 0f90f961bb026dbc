"""Placements: what is refused, what is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.problem.errors import PlacementError
from placement.problem.placement import EMPTY, MAX_TABLE, Placement
from tests.placement.random_placements import placements
from tests.tolerance import rounding


def small(**changes: Any) -> Placement:
    """Four experts on two GPUs of three slots: expert 1 twice, one slot empty."""
    fields: dict[str, Any] = {
        "slot_expert_LS": np.array([[0, 1, 2, 1, 3, -1], [3, 2, 1, 0, 1, -1]]),
        "slot_gpu_S": np.array([0, 0, 0, 1, 1, 1]),
        "experts": 4,
        "gpus": 2,
        "layers": (3, 5),
    }
    return Placement(**(fields | changes))


def test_arrays_are_converted_copied_and_frozen() -> None:
    slot_gpu_S = np.array([0, 0, 0, 1, 1, 1], dtype=np.int64)
    placement = small(slot_gpu_S=slot_gpu_S)
    slot_gpu_S[0] = 1
    assert placement.slot_expert_LS.dtype == np.int16
    assert placement.slot_gpu_S.dtype == np.int32
    assert placement.slot_gpu_S[0] == 0
    for array in (placement.slot_expert_LS, placement.slot_gpu_S, placement.replicas_LE):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_loads_divide_over_replicas_worked_by_hand() -> None:
    # Layer 3: GPU 0 holds 0, half of 1, and 2; GPU 1 the other half and 3.
    # Layer 5: GPU 0 holds 3, 2, half of 1; GPU 1 holds 0 and half of 1.
    load_LG = small().gpu_load_LG([[30.0, 20.0, 10.0, 40.0], [1.0, 2.0, 3.0, 4.0]])
    assert load_LG.tolist() == [[50.0, 50.0], [8.0, 2.0]]


def test_replica_table_worked_by_hand() -> None:
    count_LE, slots_LER = small().replica_table()
    assert count_LE.tolist() == [[1, 2, 1, 1], [1, 2, 1, 1]]
    assert slots_LER.tolist() == [[[0, -1], [1, 3], [2, -1], [4, -1]], [[3, -1], [2, 4], [1, -1], [0, -1]]]
    assert count_LE.dtype == slots_LER.dtype == np.dtype(np.int32)


@given(placements())
def test_replica_table_lists_exactly_the_slots_of_each_expert(placement: Placement) -> None:
    count_LE, slots_LER = placement.replica_table()
    for row, slot_expert_S in enumerate(placement.slot_expert_LS.tolist()):
        for expert in range(placement.experts):
            slots = [slot for slot, held in enumerate(slot_expert_S) if held == expert]
            assert count_LE[row, expert] == len(slots)
            assert slots_LER[row, expert].tolist() == slots + [-1] * (slots_LER.shape[2] - len(slots))


@given(placements(), st.data())
def test_gpu_load_is_the_naive_sum(placement: Placement, data: st.DataObject) -> None:
    loads = st.lists(st.integers(0, 1000), min_size=placement.experts, max_size=placement.experts)
    load_LE = np.array([data.draw(loads) for _ in placement.layers], dtype=np.float64)
    expected = np.zeros((len(placement.layers), placement.gpus))
    for row, slot_expert_S in enumerate(placement.slot_expert_LS.tolist()):
        for slot, expert in enumerate(slot_expert_S):
            if expert != EMPTY:
                share = load_LE[row, expert] / slot_expert_S.count(expert)
                expected[row, placement.slot_gpu_S[slot]] += share
    load_LG = placement.gpu_load_LG(load_LE)
    assert load_LG.dtype == np.float64
    np.testing.assert_allclose(load_LG, expected, rtol=rounding(1000))
    np.testing.assert_allclose(load_LG.sum(axis=1), load_LE.sum(axis=1), rtol=rounding(1000))


def test_gpu_load_refuses_loads_of_another_shape() -> None:
    with pytest.raises(
        PlacementError, match=r"load: must have shape \[2 layers, 4 experts\] \(got \(1, 4\)\)"
    ):
        small().gpu_load_LG([[1.0, 2.0, 3.0, 4.0]])


def test_equality_looks_at_every_field() -> None:
    assert small() == small()
    swapped = np.array([[1, 0, 2, 1, 3, -1], [3, 2, 1, 0, 1, -1]])
    for changes in (
        {"slot_expert_LS": swapped},
        {"slot_gpu_S": np.array([0, 0, 1, 1, 1, 1])},
        {"gpus": 3},
        {"layers": (3, 6)},
        {"origin": "greedy"},
    ):
        assert small() != small(**changes)
    assert small() != "placement"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 0}, "experts: must be an integer from 1 to 32767 (got 0)"),
        ({"experts": True}, "experts: must be an integer from 1 to 32767 (got True)"),
        ({"experts": 10**18}, "experts: must be an integer from 1 to 32767 (got 1000000000000000000)"),
        ({"gpus": 10**9}, "gpus: must be an integer from 1 to 4096 (got 1000000000)"),
        ({"layers": ()}, "layers: must name at least one layer"),
        ({"layers": (5, 3)}, "layers[1]: layer indices must be integers from 0 to 65535, ascending (got 3)"),
        (
            {"layers": (-1, 3)},
            "layers[0]: layer indices must be integers from 0 to 65535, ascending (got -1)",
        ),
        (
            {"layers": (3, 10**30)},
            f"layers[1]: layer indices must be integers from 0 to 65535, ascending (got {10**30})",
        ),
        (
            {"layers": (3, 4.0)},
            "layers[1]: layer indices must be integers from 0 to 65535, ascending (got 4.0)",
        ),
        ({"layers": (3,)}, "slot_expert: must have shape [1 layers, 6 slots] (got (2, 6))"),
        ({"origin": "two\nlines"}, r"origin: must be one line of printable text (got 'two\nlines')"),
        ({"origin": "\ud800"}, r"origin: must be one line of printable text (got '\ud800')"),
        ({"slot_gpu_S": np.array([0, 0, 0, 1, 1, 2])}, "slot_gpu[5]: must be a GPU from 0 to 1 (got 2)"),
        ({"slot_gpu_S": np.array([0, -1, 0, 1, 1, 1])}, "slot_gpu[1]: must be a GPU from 0 to 1 (got -1)"),
        (
            {"slot_gpu_S": np.array([0.0, 1.0])},
            "slot_gpu: must be integers of shape [slots], not empty (got 'float64 (2,)')",
        ),
        (
            {"slot_gpu_S": np.array([], dtype=np.int32)},
            "slot_gpu: must be integers of shape [slots], not empty (got 'int32 (0,)')",
        ),
        ({"slot_gpu_S": np.zeros(70_000, np.int8)}, "slot_gpu: must be at most 65536 slots (got 70000)"),
        ({"slot_gpu_S": np.array([0, 1])}, "slot_expert: must have shape [2 layers, 2 slots] (got (2, 6))"),
        (
            {"slot_expert_LS": np.array([[0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 0, 0]])},
            "slot_expert, layer 3, slot 4: must be an expert from 0 to 3, or -1 for an empty slot (got 4)",
        ),
        (
            {"slot_expert_LS": np.array([[0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 0, 1 << 16]])},
            "slot_expert, layer 5, slot 5: must be an expert from 0 to 3, or -1 for an empty slot"
            " (got 65536)",
        ),
        (
            {"slot_expert_LS": np.array([[0, 1, 2, 3, 0, 0], [0, 1, 3, 3, 0, -1]])},
            "slot_expert: layer 5: expert 2 is in no slot",
        ),
        ({"experts": 7}, "slot_expert: more experts than slots (got '7 on 6 slots')"),
    ],
)
def test_a_wrong_placement_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlacementError) as caught:
        small(**changes)
    assert str(caught.value) == message


def test_a_table_of_replicas_that_would_fill_the_memory_is_refused() -> None:
    experts, slots = 20_000, 60_000
    slot_expert_LS = np.zeros((1, slots), dtype=np.int16)
    slot_expert_LS[0, :experts] = np.arange(experts)
    placement = Placement(slot_expert_LS, np.zeros(slots, dtype=np.int32), experts, 1, (0,))
    assert experts * (slots - experts) > MAX_TABLE
    with pytest.raises(PlacementError, match="too many replicas of one expert"):
        placement.replica_table()


def test_a_placement_for_another_model_is_refused() -> None:
    placement = small()
    placement.check_fits(4, 2, (3, 5))
    with pytest.raises(PlacementError, match=r"experts: the placement must be for 8 \(got 4\)"):
        placement.check_fits(8, 2, (3, 5))
    with pytest.raises(PlacementError, match=r"gpus: the placement must be for 4 \(got 2\)"):
        placement.check_fits(4, 4, (3, 5))
    with pytest.raises(
        PlacementError, match=r"must be for 3 layers from 3 to 5 \(got '2 layers from 3 to 5'\)"
    ):
        placement.check_fits(4, 2, (3, 4, 5))
