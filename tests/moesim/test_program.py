"""Overlap: what may run beside what, on a clock that can be followed by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given

from moesim.analysis.critical_path import critical_path
from moesim.hardware.network import Fabric, Ports
from moesim.simulation.clock import StepClock
from moesim.simulation.conditions import Conditions
from moesim.simulation.loop import simulate
from moesim.simulation.operations import Operation
from moesim.simulation.program import Program, beside_shared_expert, in_sequence, two_batches
from moesim.simulation.recording import Recording
from tests.moesim.programs import SLOW, chains, collective, compute
from tests.tolerance import rounding
from traces.timeline import PHASES


def clock(program: Program, ranks: int) -> StepClock:
    (done,) = simulate([program], ranks, Conditions([Ports(SLOW)]), "event")
    return done


def layer(shared: bool = True) -> list[Operation]:
    """One layer on two ranks: attention 2, router 1, shared expert 3, dispatch 4, experts 5, combine 6."""
    exchange = [
        collective("dispatch", 0, [[0.0, 4.0], [4.0, 0.0]]),
        compute("experts", 0, 5.0, 5.0),
        collective("combine", 0, [[0.0, 6.0], [6.0, 0.0]]),
    ]
    local = [compute("attention", 0, 2.0, 2.0), compute("router", 0, 1.0, 1.0)]
    return [*local, *([compute("shared_expert", 0, 3.0, 3.0)] if shared else []), *exchange]


def ends(program: Program, ranks: int = 2) -> dict[tuple[str, int], float]:
    done = clock(program, ranks)
    return {
        (operation.phase, operation.micro_batch): float(done.end_OG[at].max())
        for at, operation in enumerate(program.operations)
    }


def test_the_shared_expert_hides_behind_the_dispatch() -> None:
    """Dispatch from 3 to 7 beside the shared expert from 3 to 6: experts end at 12, not at 15."""
    assert ends(in_sequence(layer()))["combine", 0] == 2 + 1 + 3 + 4 + 5 + 6
    found = ends(beside_shared_expert(layer()))
    assert found["dispatch", 0] == 7.0
    assert found["shared_expert", 0] == 6.0
    assert found["experts", 0] == 12.0
    assert found["combine", 0] == 18.0


def test_experts_wait_for_a_shared_expert_that_takes_longer_than_the_dispatch() -> None:
    chain = layer()
    chain[2] = compute("shared_expert", 0, 9.0, 9.0)
    assert ends(beside_shared_expert(chain))["experts", 0] == 3 + 9 + 5


def test_two_batches_take_turns_on_both_lanes() -> None:
    """By hand. Compute: A 0-3, B 3-6, A's experts 7-12, B's 12-17. Wires: A 3-7, B 7-11, A 12-18, B 18-24."""
    program = two_batches(layer(shared=False), layer(shared=False))
    found = ends(program)
    assert found == {
        ("attention", 0): 2.0,
        ("router", 0): 3.0,
        ("attention", 1): 5.0,
        ("router", 1): 6.0,
        ("dispatch", 0): 7.0,
        ("dispatch", 1): 11.0,
        ("experts", 0): 12.0,
        ("experts", 1): 17.0,
        ("combine", 0): 18.0,
        ("combine", 1): 24.0,
    }
    recording = Recording("two batches", (0,))
    recording.add_step(0, clock(program, 2), program.operations)
    timeline = recording.timeline()
    timeline.validate()
    assert set(timeline.micro_batch_N.tolist()) == {0, 1}
    path = dict(zip(PHASES, critical_path(timeline, 0).tolist(), strict=True))
    # 24 = combine B (6), combine A (6), experts A (5), dispatch A (4), attention and router of A (3).
    assert path["combine"] == 12.0
    assert path["experts"] == 5.0
    assert path["dispatch"] == 4.0
    assert path["attention"] + path["router"] == 3.0
    assert path["wait"] == 0.0


@given(first=chains(), second=chains())
def test_two_batches_never_run_a_lane_twice_at_once_nor_before_what_they_need(
    first: list[Operation], second: list[Operation]
) -> None:
    program = two_batches(first, second)
    done = clock(program, 4)
    recording = Recording("two batches", sorted({op.layer for op in program.operations}))
    recording.add_step(0, done, program.operations)
    timeline = recording.timeline()
    timeline.validate()
    for chain, offset in ((first, 0), (second, len(first))):
        for at in range(offset + 1, offset + len(chain)):
            assert (done.start_OG[at] >= done.end_OG[at - 1].min() - 1e-12).all()
            own = done.start_OG[at] if program.operations[at].transfer is None else done.end_OG[at]
            assert (own >= done.end_OG[at - 1] - 1e-12).all()
    # Never shorter than the compute lane of any rank. (Longer than in sequence it can be: Graham 1966.)
    busy_G = np.add.reduce([operation.busy_G for operation in program.operations])
    assert done.end_s >= busy_G.max() - 1e-9
    assert critical_path(timeline, 0).sum() == pytest.approx(done.end_s, rel=rounding(1000))


def test_micro_batches_do_not_share_a_port_that_is_full() -> None:
    """Rank 0 leaves the first dispatch at 1, when its byte is sent; rank 2 sends rank 1 four, until 4.

    In the second dispatch rank 0 has 5 bytes for rank 1. They wait for rank 1's port until 4: done at 9, not
    at 6.
    """
    nobody, fabric = [0.0] * 4, Fabric(4, 1.0, 1.0, 0.0, 0.0)
    first = [[0.0, 0.0, 0.0, 1.0], nobody, [0.0, 4.0, 0.0, 0.0], nobody]
    second = [[0.0, 5.0, 0.0, 0.0], nobody, nobody, nobody]
    program = two_batches([collective("dispatch", 0, first)], [collective("dispatch", 0, second)])
    (done,) = simulate([program], 4, Conditions([Ports(fabric)]), "event")
    assert done.end_OG[0].tolist() == [1.0, 4.0, 4.0, 1.0]
    assert done.entered_OG[1].tolist() == [1.0, 4.0, 4.0, 1.0]
    assert done.end_OG[1].tolist() == [9.0, 9.0, 4.0, 4.0]


@given(first=chains(), second=chains())
def test_what_a_rank_receives_of_two_collectives_fits_through_its_port(
    first: list[Operation], second: list[Operation]
) -> None:
    program = two_batches(first, second)
    done = clock(program, 4)
    operations = program.operations
    collectives = [at for lane in program.order.lanes for at in lane if operations[at].transfer is not None]
    for before, at in itertools.pairwise(collectives):
        transfer = operations[at].transfer
        assert transfer is not None
        # 1 byte a second inside the node and as much outside: the larger part is the bound.
        across_GG = np.arange(4)[:, None] // 2 != np.arange(4)[None, :] // 2
        for part_GG in (across_GG, ~across_GG):
            received_G = (transfer.first_GG * part_GG).sum(axis=0)
            assert (done.end_OG[at] >= done.end_OG[before] + received_G - 1e-9).all()


@given(chain=chains())
def test_without_a_shared_expert_there_is_nothing_to_hide(chain: list[Operation]) -> None:
    one, two = clock(in_sequence(chain), 4), clock(beside_shared_expert(chain), 4)
    np.testing.assert_allclose(one.end_OG, two.end_OG, rtol=rounding(1000))


@pytest.mark.parametrize("overlap", ["none", "shared_expert", "two_batch"])
def test_a_lane_that_waits_for_its_own_rank_is_not_held_up_by_others(overlap: str) -> None:
    """All ranks equal: whatever overlaps, nobody waits for anybody."""
    program = {
        "none": in_sequence(layer()),
        "shared_expert": beside_shared_expert(layer()),
        "two_batch": two_batches(layer(), layer()),
    }[overlap]
    recording = Recording("even", (0,))
    recording.add_step(0, clock(program, 2), program.operations)
    assert PHASES.index("wait") not in recording.timeline().phase_N
