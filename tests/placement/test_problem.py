"""What a placement problem refuses, and what it fills in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from placement.problem.errors import PlacementError
from placement.problem.objective import Objective
from placement.problem.placement import Placement
from placement.problem.problem import Problem

LOAD = [[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 9.0]]


def four(**changes: Any) -> Problem:
    """Four experts in the layers 3 and 5, on two GPUs of three slots."""
    fields: dict[str, Any] = {"load": LOAD, "gpus": 2, "slots": 6, "layers": (3, 5)}
    return Problem.of(**(fields | changes))


def placed(*rows: list[int]) -> Placement:
    return Placement(np.array(rows), np.array([0, 0, 0, 1, 1, 1]), 4, 2, (3, 5))


def test_what_is_left_out_is_filled_in() -> None:
    problem = four()
    assert (problem.windows, problem.experts, problem.gpus, problem.nodes, problem.slots) == (1, 4, 2, 1, 6)
    assert problem.speed_G.tolist() == [1.0, 1.0]
    assert problem.slot_gpu_S.tolist() == [0, 0, 0, 1, 1, 1]
    assert Problem.of(LOAD, 3).slots_G.tolist() == [2, 1, 1]
    assert Problem.of(LOAD, 5, 7, gpus_per_node=2).node_G.tolist() == [0, 0, 1, 1, 2]
    assert Problem.of(LOAD, 5, 7, gpus_per_node=[1, 4]).node_G.tolist() == [0, 1, 1, 1, 1]


def test_arrays_are_copied_and_frozen() -> None:
    load_WLE = np.ones((1, 1, 4), dtype=np.int32)
    problem = Problem.of(load_WLE, 2)
    load_WLE[:] = 7
    assert problem.load_WLE.dtype == np.float64
    assert problem.load_WLE.max() == 1.0
    with pytest.raises(ValueError, match="read-only"):
        problem.slots_G[0] = 9


def test_the_slots_of_a_previous_placement_are_kept_where_they_fit() -> None:
    slot_gpu_S = np.array([1, 0, 1, 0, 1, 0])
    previous = Placement(np.array([[0, 1, 2, 3, 0, 1]] * 2), slot_gpu_S, 4, 2, (3, 5))
    assert four(previous=previous).slot_gpu_S.tolist() == slot_gpu_S.tolist()
    assert four(previous=previous, slots=8).slot_gpu_S.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": [[1.0, np.nan, 1.0, 1.0]] * 2}, "load, layer 3, expert 1: must be finite and not negative"),
        (
            {"load": [LOAD, [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, -2.0, 1.0]]]},
            "load, window 1, layer 5, expert 2: must be finite and not negative (got -2.0)",
        ),
        ({"load": [[0.0] * 4, [1.0] * 4]}, "load, layer 3: the loads of a layer must not all be zero"),
        ({"load": [[1e300] * 4, [1.0] * 4]}, "load, layer 3: must sum to at most 1e+300 (got 4e+300)"),
        ({"load": "many"}, "load: must be an array of numbers"),
        ({"load": LOAD[:1]}, "load: must have shape [windows, 2 layers, experts], not empty (got (1, 1, 4))"),
        ({"layers": (5, 3)}, "layers[1]: must be a whole number from 6 to 65535 (got 3)"),
        ({"gpus": 0}, "gpus: must be a whole number from 1 to 4096 (got 0)"),
        ({"gpus": 2.0}, "gpus: must be a whole number from 1 to 4096 (got 2.0)"),
        (
            {"slots": 3},
            "slots: more experts than slots: 4 experts, each on a GPU, need as many slots (got 3)",
        ),
        ({"slots": [9, 0], "gpus": 2, "load": [[1.0] * 10] * 2}, "slots: more experts than slots"),
        ({"slots": [6, -1]}, "slots[1]: must be a whole number from 0 to 65536 (got -1)"),
        ({"slots": [2, 2, 2]}, "slots: must be whole numbers of shape [2] (got 'int64 (3,)')"),
        ({"gpus_per_node": [1, 2]}, "gpus_per_node: must sum to 2 GPUs (got 3)"),
        ({"gpus_per_node": 0}, "gpus_per_node: must be a whole number from 1 to 4096 (got 0)"),
        ({"speed": [1.0, 0.0]}, "speed: must be a finite number above 0 for each GPU (got [1. 0.])"),
        ({"groups": 3}, "groups: must divide 4 experts (got 3)"),
        ({"groups": 2, "gpus_per_node": 1, "slots": [5, 1]}, "slots: node 1 must hold 1 groups of 2 experts"),
        (
            {"groups": 2, "fixed": ((3, 0, 0),)},
            "groups: cannot be combined with fixed or forbidden positions",
        ),
        ({"fixed": ((4, 0, 0),)}, "fixed[0]: layer: is no layer of the problem (got 4)"),
        ({"fixed": ((3, 4, 0),)}, "fixed[0]: expert: must be a whole number from 0 to 3 (got 4)"),
        ({"forbidden": ((3, 0),)}, "forbidden[0]: must be (layer, expert, gpu) (got (3, 0))"),
        (
            {"fixed": ((3, 1, 0),), "forbidden": ((3, 1, 0),)},
            "fixed: layer 3: expert 1 on GPU 0 is fixed and forbidden",
        ),
        (
            {"forbidden": ((5, 1, 0), (5, 1, 1))},
            "forbidden: layer 5: expert 1 is forbidden on every GPU with slots",
        ),
        (
            {"slots": [2, 4], "fixed": ((3, 0, 0), (3, 1, 0), (3, 2, 0))},
            "fixed: layer 3: more experts are fixed on GPU 0 than its 2 slots (got 3)",
        ),
        (
            {"slots": [3, 1], "forbidden": ((3, 0, 0), (3, 1, 0))},
            "forbidden: layer 3: some experts together may only lie on GPUs that have fewer slots left",
        ),
        ({"max_moves": 3}, "max_moves: needs a previous placement"),
        ({"objective": Objective(per_move=1.0)}, "objective.per_move: needs a previous placement"),
        ({"max_moves": -1}, "max_moves: must be a whole number from 0"),
        (
            {"previous": Placement(np.array([[0, 1, 2, 3]]), np.array([0, 0, 1, 1]), 4, 2, (3,))},
            "layers: the placement must be for 2 layers from 3 to 5",
        ),
        (
            {
                "previous": placed([0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 1]),
                "forbidden": ((3, 2, 0), (5, 0, 0), (5, 2, 0)),
                "max_moves": 1,
            },
            "max_moves: the other rules alone make 2 copies move (got 1)",
        ),
        (
            {"objective": Objective(per_active=1.0)},
            "objective.per_active: needs active_WLE, the probability that each expert gets a token",
        ),
        ({"active_WLE": np.full((2, 4), 1.5)}, "active: must be probabilities from 0 to 1"),
        ({"active_WLE": np.ones((3, 4))}, "active: must have the loads' shape (1, 2, 4)"),
        (
            {"objective": Objective(per_copy=1.0)},
            "objective.per_copy: needs sample_TLK, tokens with their experts",
        ),
        ({"sample_TLK": np.full((5, 2, 2), 4)}, "sample: must be experts from 0 to 3"),
        ({"sample_TLK": np.ones((5, 2, 2))}, "sample: must be whole numbers of shape [any, 2, any]"),
        ({"home_T": np.zeros(5, int)}, "home: needs sample_TLK, the tokens that have these homes"),
        (
            {"sample_TLK": np.zeros((5, 2, 2), int), "home_T": np.ones(5, int)},
            "home: must be nodes from 0 to 0",
        ),
        ({"objective": "time"}, "objective: must be an Objective (got 'time')"),
    ],
)
def test_a_wrong_problem_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlacementError) as caught:
        four(**changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"per_token": -1.0}, "objective.per_token: must be finite and not negative (got -1.0)"),
        ({"per_move": float("nan")}, "objective.per_move: must be finite and not negative (got nan)"),
        ({"per_active": True}, "objective.per_active: must be a number (got True)"),
        (
            {"per_token": 0.0, "per_move": 1.0},
            "objective: needs a cost above 0 per token, per active expert or per copy",
        ),
    ],
)
def test_a_wrong_objective_is_refused(costs: dict[str, Any], message: str) -> None:
    with pytest.raises(PlacementError) as caught:
        Objective(**costs)
    assert str(caught.value) == message
