"""Who sends which expert to whom: against the definition, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.judging.migration import plan_migration
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement
from placement.problem.rules import held_EG


@st.composite
def two_placements(draw: st.DrawFn) -> tuple[Placement, Placement, list[int]]:
    """Two placements of the same experts on the same GPUs, each with slots of its own, and GPUs' nodes."""
    experts, gpus = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    layers = tuple(sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=3))))
    pair = []
    for _ in range(2):
        extra = draw(st.integers(0, 4))
        more = st.lists(st.integers(-1, experts - 1), min_size=extra, max_size=extra)
        rows = [draw(st.permutations([*range(experts), *draw(more)])) for _ in layers]
        slots = experts + extra
        slot_gpu = draw(st.lists(st.integers(0, gpus - 1), min_size=slots, max_size=slots))
        pair.append(Placement(np.array(rows), np.array(slot_gpu), experts, gpus, layers))
    node_G = draw(st.lists(st.integers(0, 1), min_size=gpus, max_size=gpus))
    return pair[0], pair[1], node_G


@given(two_placements())
def test_every_gpu_gets_what_it_lacks_from_the_nearest_that_has_it(
    drawn: tuple[Placement, Placement, list[int]],
) -> None:
    before, after, node_G = drawn
    plan = plan_migration(before, after, node_G)
    row_of = {layer: row for row, layer in enumerate(before.layers)}
    came = set()
    for transfer in plan.transfers():
        row, expert = row_of[transfer["layer"]], transfer["expert"]
        holders = np.flatnonzero(held_EG(before, row)[expert]).tolist()
        assert transfer["from"] in holders
        near = [gpu for gpu in holders if node_G[gpu] == node_G[transfer["to"]]]
        assert not near or transfer["from"] in near
        came.add((row, expert, transfer["to"]))
    assert len(came) == plan.moves
    for row in range(len(before.layers)):
        arrived = np.zeros((before.experts, before.gpus), dtype=bool)
        for at, expert, gpu in came:
            arrived[expert, gpu] |= at == row
        had, has = held_EG(before, row), held_EG(after, row)
        assert np.array_equal(arrived, has & ~had)
    copies_LGG = plan.bytes_LGG(np.ones((len(before.layers), before.experts)))
    assert copies_LGG.sum() == plan.moves
    assert not copies_LGG.diagonal(axis1=1, axis2=2).any()
    across = np.not_equal.outer(node_G, node_G)
    assert plan.crossing(node_G) == copies_LGG.sum(axis=0)[across].sum()


@given(two_placements())
def test_a_placement_that_stays_moves_nothing(drawn: tuple[Placement, Placement, list[int]]) -> None:
    before, _, node_G = drawn
    plan = plan_migration(before, before, node_G)
    assert (plan.moves, plan.transfers(), plan.crossing(node_G)) == (0, [], 0)
    assert not plan.bytes_LGG(np.ones((len(before.layers), before.experts))).any()


def test_senders_take_turns() -> None:
    # Experts 0 to 3 are on GPUs 0 and 1 both; GPU 2 wants them all.
    slot_gpu = np.repeat([0, 1, 2], 4)
    before = Placement(np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 4, 4, 4]]), slot_gpu, 5, 3, (0,))
    after = Placement(np.array([[0, 1, 2, 4, 0, 1, 2, 3, 0, 1, 2, 3]]), slot_gpu, 5, 3, (0,))
    plan = plan_migration(before, after, [0, 0, 0])
    # Experts of 1, 2, 4 and 8 bytes: the senders of GPU 2 have two each, and expert 4 goes to GPU 0.
    bytes_GG = plan.bytes_LGG(np.array([[1.0, 2.0, 4.0, 8.0, 16.0]]))[0]
    assert (bytes_GG[:, :2].tolist(), bytes_GG[:, 2].sum()) == ([[0, 0], [0, 0], [16, 0]], 15)
    assert (plan.bytes_LGG(np.ones((1, 5)))[0] == [[0, 0, 2], [0, 0, 2], [1, 0, 0]]).all()


def test_what_has_no_choice_goes_first() -> None:
    # Expert 0 is on GPU 0 alone, expert 1 on GPUs 0 and 1: GPU 1 has to send expert 1.
    slot_gpu = np.array([0, 0, 1, 1, 2, 2])
    before = Placement(np.array([[0, 1, 1, 2, 3, 3]]), slot_gpu, 4, 3, (0,))
    after = Placement(np.array([[0, 3, 1, 2, 1, 0]]), slot_gpu, 4, 3, (0,))
    plan = plan_migration(before, after, [0, 0, 0])
    assert {(each["expert"], each["from"], each["to"]) for each in plan.transfers()} == {
        (0, 0, 2),
        (1, 1, 2),
        (3, 2, 0),
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layers": (1,)}, "layers: the placement must be for 1 layers from 0 to 0"),
        ({"gpus": 3}, "gpus: the placement must be for 2"),
    ],
)
def test_other_models_and_groups_are_refused(changed: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"experts": 2, "gpus": 2, "layers": (0,)}
    slots = np.array([[0, 1]]), np.array([0, 1])
    before = Placement(*slots, **fields)  # type: ignore[arg-type]
    after = Placement(*slots, **(fields | changed))  # type: ignore[arg-type]
    with pytest.raises(PlacementError, match=message):
        plan_migration(before, after, [0, 0])


def test_a_node_for_each_gpu() -> None:
    placement = Placement(np.array([[0, 1]]), np.array([0, 1]), 2, 2, (0,))
    with pytest.raises(PlacementError, match="node: must name a node for each of 2 GPUs"):
        plan_migration(placement, placement, [0])
