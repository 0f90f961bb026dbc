"""Who is named as the straggler of a layer, and why: timelines in which one thing holds everybody up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.analysis.stragglers import stragglers
from moesim.simulation.operations import Operation
from moesim.simulation.recording import Recording
from placement.problem.placement import Placement
from tests.moesim.programs import collective, compute, run
from traces.timeline import PHASES, WorkTable

EVEN = (1.0, 1.0, 1.0, 1.0)
LOAD = (10, 10, 10, 10)
NOTHING = [[0.0] * 4] * 4
EXCHANGE = (1.0 - np.eye(4)).tolist()
# Rank 2 takes 30 bytes of rank 0; everyone else exchanges a byte. Rank 3 sends 30 in the other.
TO_TWO = (np.array(EXCHANGE) + np.outer(np.eye(4)[3], 30 * np.eye(4)[2])).tolist()


def layer(
    at: int,
    *,
    attention: Sequence[float] = EVEN,
    experts: Sequence[float] = EVEN,
    load: Sequence[int] = LOAD,
    dispatch: list[list[float]] = EXCHANGE,
    combine: list[list[float]] = EXCHANGE,
) -> list[Operation]:
    """One MoE layer on two nodes of two ranks, all links at a byte a second."""
    work = compute("experts", at, *experts)
    return [
        compute("attention", at, *attention),
        collective("dispatch", at, dispatch),
        replace(work, assignments_G=np.array(load)),
        collective("combine", at, combine),
    ]


def named(
    *layers: list[Operation], slots: Sequence[int] = (1, 1, 1, 1), faulty: Sequence[int] = ()
) -> list[tuple[int, str]]:
    """Rank and cause of each layer. Two slots a rank, of which it activated ``slots`` in each layer."""
    operations = [operation for each in layers for operation in each]
    recording = Recording("stragglers", range(len(layers)))
    recording.add_step(0, run(operations, 4), operations)
    rows = [
        (at, 2 * rank + slot, loads[rank] / slots[rank])
        for at, loads in enumerate(each[2].assignments_G for each in layers)
        for rank in range(4)
        for slot in range(slots[rank])
    ]
    layer_N, slot_N, count_N = (np.array(column) for column in zip(*rows, strict=True))
    none = np.zeros(len(rows), np.int32)
    table = WorkTable(
        none, layer_N, none + PHASES.index("experts"), none, none - 1, slot_N, count_N, none.astype(np.int64)
    )
    placement = Placement(
        np.tile(np.arange(8), (len(layers), 1)),
        np.repeat(np.arange(4), 2),
        experts=8,
        gpus=4,
        layers=tuple(range(len(layers))),
    )
    found = stragglers(recording.timeline(), table, placement, faulty)
    assert [row.layer for row in found] == list(range(len(layers)))
    return [(row.rank, row.cause) for row in found]


def test_without_a_loss_there_is_no_cause() -> None:
    assert named(layer(0), layer(1)) == [(0, "none"), (0, "none")]


def test_more_assignments_that_take_longer_are_tokens() -> None:
    assert named(layer(0, experts=(1, 1, 3, 1), load=(10, 10, 30, 10))) == [(2, "tokens")]


def test_more_activated_slots_at_equal_assignments_are_weights() -> None:
    """Twice the slots, twice the time, as many tokens: it is their weights that are streamed."""
    assert named(layer(0, experts=(1, 1, 1, 2)), slots=(1, 1, 1, 2)) == [(3, "weights")]


def test_slots_that_explain_less_than_half_of_the_time_are_not_the_cause() -> None:
    """Twice the slots, but six times the time."""
    assert named(layer(0, experts=(1, 1, 1, 6)), slots=(1, 1, 1, 2)) == [(3, "tokens")]


def test_assignments_come_before_slots_where_they_are_closer_to_the_time() -> None:
    given = layer(0, experts=(1, 1, 1, 3), load=(10, 10, 10, 30))
    assert named(given, slots=(1, 1, 1, 2)) == [(3, "tokens")]


def test_tokens_that_arrive_late_are_the_network() -> None:
    """Ranks 2 and 3 leave the dispatch at 33, the others at 4: all wait for them in the combine."""
    assert named(layer(0, dispatch=TO_TWO)) == [(2, "network")]


def test_a_long_wait_before_the_dispatch_is_attention() -> None:
    """Rank 1 attends longest. Rank 3's experts take a little longer, which is not what costs the time."""
    given = layer(0, attention=(1, 9, 1, 1), experts=(1, 1, 1, 1.2))
    assert named(given) == [(1, "attention")]


def test_a_late_way_out_of_the_layer_before_is_the_network() -> None:
    """The combine of layer 0 holds ranks 2 and 3 until late; all wait for them in layer 1's dispatch."""
    assert named(layer(0, combine=TO_TWO), layer(1))[1] == (2, "network")


def test_nobody_is_late_from_a_combine_in_the_first_layer() -> None:
    """Where the layer before has no experts, whatever holds a rank up is its own work."""
    assert named(layer(0, attention=(1, 1, 1, 4)), layer(1))[0] == (3, "attention")


@pytest.mark.parametrize("faulty", [(), (2,), (1,)])
def test_time_without_assignments_is_hardware_on_a_faulty_rank_only(faulty: Sequence[int]) -> None:
    expected = "hardware" if 2 in faulty else "tokens"
    assert named(layer(0, experts=(1, 1, 4, 1)), faulty=faulty) == [(2, expected)]


def test_of_ranks_that_are_last_together_the_faulty_one_is_named() -> None:
    """A slow NVLink port holds up the other GPUs of its attention group as long as its own."""
    given = layer(0, attention=(1, 1, 4, 4), experts=(1, 1, 1, 1.1))
    assert named(given) == [(2, "attention")]
    assert named(given, faulty=(3,)) == [(3, "hardware")]


def test_a_faulty_rank_with_as_many_more_assignments_is_not_to_blame() -> None:
    given = layer(0, experts=(1, 1, 4, 1), load=(10, 10, 40, 10))
    assert named(given, faulty=(2,)) == [(2, "tokens")]


def test_a_layer_without_attention_begins_with_its_router() -> None:
    """Late in a run, a loss of a fifth of the layer is none of the clock."""
    routed = [
        [replace(each[0], phase="router"), *each[1:]]
        for each in (layer(0, experts=(900, 900, 900, 900)), layer(1, experts=(1, 1, 2, 1)))
    ]
    assert named(*routed)[1] == (2, "tokens")


def test_figures_of_the_named_rank() -> None:
    operations = layer(0, experts=(1, 1, 4, 1), load=(10, 10, 40, 20))
    recording = Recording("figures", (0,))
    recording.add_step(0, run(operations, 4), operations)
    none = np.zeros(5, np.int32)
    slots = WorkTable(
        none,
        none,
        none + PHASES.index("experts"),
        none,
        none - 1,
        np.array([0, 2, 4, 5, 6]),
        np.array([10, 10, 28, 12, 20]),
        none,
    )
    placement = Placement(
        np.array([[7, 6, 5, 4, 3, 2, 1, 0]]), np.repeat(np.arange(4), 2), experts=8, gpus=4, layers=(0,)
    )
    (row,) = stragglers(recording.timeline(), slots, placement)
    # Slot 4 of rank 2 holds expert 3; ranks 0, 1 and 3 wait 3 s each for rank 2 in the combine.
    expected: dict[str, Any] = {
        "layer": 0,
        "rank": 2,
        "share": 1.0,
        "load": 40 / 20,
        "time": 4 / 1.75,
        "lost_s": 3 * 3 / 4,
        "cause": "tokens",
        "expert": 3,
        "expert_share": 0.7,
        "expert_load": 28 / 20,
    }
    assert row.plain() == pytest.approx(expected)
