"""The clock: an exact log worked out by hand, and closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.analysis.counterfactuals import as_one, without_network, without_overhead
from moesim.hardware.network import Fabric, Ports
from moesim.hardware.transfer import Transfer
from moesim.simulation.conditions import Conditions
from moesim.simulation.loop import simulate
from moesim.simulation.operations import Operation
from moesim.simulation.program import in_sequence
from moesim.simulation.recording import Recording
from tests.moesim.programs import LAYERS, SLOW, chains, collective, compute, run
from tests.tolerance import rounding
from traces.timeline import PHASES, STREAMS

# (phase, layer, rank, start, end). Layer 0: both enter the dispatch at 1.5. Rank 0 sends 4 bytes and rank 1
# receives 4: both are done at 5.5. Rank 0 is done with its experts at 7.5 and waits for rank 1 until 11.5.
# Combine: rank 1 sends 4 bytes from 11.5 on, so both end at 15.5 (rank 0's single byte left at 7.5).
# Layer 1: rank 1 is ready at 17.0 and waits for rank 0 until 19.0. Its 2 bytes left at 17.0 and are there at
# 19.0; rank 0's leave at 19.0. So rank 0, which sends until 21.0, leaves at 21.25, and so does rank 1.
LOG = [
    ("attention", 0, 0, 0.0, 1.0),
    ("router", 0, 0, 1.0, 1.5),
    ("dispatch", 0, 0, 1.5, 5.5),
    ("experts", 0, 0, 5.5, 7.5),
    ("wait", 0, 0, 7.5, 11.5),
    ("combine", 0, 0, 11.5, 15.5),
    ("attention", 1, 0, 15.5, 18.5),
    ("router", 1, 0, 18.5, 19.0),
    ("dispatch", 1, 0, 19.0, 21.25),
    ("experts", 1, 0, 21.25, 22.25),
    ("combine", 1, 0, 22.25, 24.25),
    ("other", -1, 0, 24.25, 25.25),
    ("attention", 0, 1, 0.0, 1.0),
    ("router", 0, 1, 1.0, 1.5),
    ("dispatch", 0, 1, 1.5, 5.5),
    ("experts", 0, 1, 5.5, 11.5),
    ("combine", 0, 1, 11.5, 15.5),
    ("attention", 1, 1, 15.5, 16.5),
    ("router", 1, 1, 16.5, 17.0),
    ("wait", 1, 1, 17.0, 19.0),
    ("dispatch", 1, 1, 19.0, 21.25),
    ("experts", 1, 1, 21.25, 22.25),
    ("combine", 1, 1, 22.25, 24.25),
    ("other", -1, 1, 24.25, 25.25),
]


def test_exact_log_of_two_ranks_and_two_layers() -> None:
    recording = Recording("by hand", (0, 1))
    recording.add_step(0, run(LAYERS), LAYERS)
    timeline = recording.timeline()
    timeline.validate()
    found = [
        (PHASES[phase], layer, rank, start, end)
        for phase, layer, rank, start, end in zip(
            timeline.phase_N.tolist(),
            timeline.layer_N.tolist(),
            timeline.rank_N.tolist(),
            timeline.start_s_N.tolist(),
            timeline.end_s_N.tolist(),
            strict=True,
        )
    ]
    assert found == LOG
    on_wire = timeline.stream_N == STREAMS.index("communication")
    assert {PHASES[phase] for phase in timeline.phase_N[on_wire]} == {"dispatch", "combine", "wait"}


def test_a_rank_that_ends_early_waits_for_the_step_to_end() -> None:
    operations = [compute("attention", 0, 1.0, 3.0), compute("other", -1, 1.0, 1.0)]
    clock = run(operations)
    recording = Recording("end", (0,))
    recording.add_step(0, clock, operations)
    timeline = recording.timeline()
    waits = np.flatnonzero(timeline.phase_N == PHASES.index("wait"))
    assert [(timeline.rank_N[i], timeline.start_s_N[i], timeline.end_s_N[i]) for i in waits] == [
        (0, 2.0, 4.0)
    ]


def test_steps_follow_each_other_on_one_clock() -> None:
    program = in_sequence(LAYERS)
    first, second = simulate([program, program], 2, Conditions([Ports(SLOW)]), "event")
    assert (first.start_s, first.end_s, second.start_s, second.end_s) == (0.0, 25.25, 25.25, 50.5)
    np.testing.assert_allclose(second.end_OG - 25.25, first.end_OG, rtol=rounding(4))


def test_no_rank_leaves_a_collective_before_every_rank_has_entered() -> None:
    clock = run([compute("attention", 0, 1.0, 9.0), collective("dispatch", 0, [[0, 0], [0, 0]])])
    assert clock.end_OG[1].tolist() == [9.0, 9.0]


@given(
    seconds=st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=6),
    size=st.floats(0.0, 1e9),
    ranks=st.integers(1, 5),
)
def test_perfect_balance_is_the_closed_form(seconds: list[float], size: float, ranks: int) -> None:
    """Equal work and uniform traffic: the sum of the phases, and (G - 1)·b / B for each collective."""
    fabric = Fabric(ranks, 100e9, 1.0, 2e-6, 1.0)
    uniform = (size * (1 - np.eye(ranks))).tolist()
    operations = []
    for layer, each in enumerate(seconds):
        operations.append(compute("experts", layer, *[each] * ranks, overhead=1e-6))
        operations.append(collective("combine", layer, uniform, overhead=3e-6))
    clock = run(operations, ranks, fabric)
    wire = 2e-6 + (ranks - 1) * size / 100e9 if ranks > 1 and size > 0 else 0.0
    assert clock.end_s == pytest.approx(sum(seconds) + len(seconds) * (wire + 4e-6), rel=rounding(1000))


@given(operations=chains(), seed=st.integers(0, 2**32))
def test_more_work_never_ends_earlier(operations: list[Operation], seed: int) -> None:
    rng = np.random.default_rng(seed)
    more = []
    for operation in operations:
        if operation.transfer is None:
            more.append(compute(operation.phase, operation.layer, *(operation.busy_G + rng.random(4) * 0.1)))
        else:
            added = operation.transfer.first_GG + rng.integers(0, 2, (4, 4)) * (1 - np.eye(4))
            more.append(collective(operation.phase, operation.layer, added.tolist()))
    assert (run(more, 4).end_OG >= run(operations, 4).end_OG - 1e-12).all()


@given(operations=chains())
def test_steps_only_lose_time_as_causes_are_removed(operations: list[Operation]) -> None:
    free = without_network(in_sequence(operations))
    steps = (operations, free.operations, without_overhead(free).operations)
    lengths = [run(list(each), 4).end_s for each in steps]
    # Without faults, overlap or shared links each removal helps.
    assert lengths[0] >= lengths[1] >= lengths[2] >= 0
    by_hand = max(sum(operation.busy_G[rank] for operation in operations) for rank in range(4))
    assert lengths[2] == pytest.approx(by_hand, rel=rounding(1000))


@given(operations=chains())
def test_equals_are_as_fast_as_one_of_them(operations: list[Operation]) -> None:
    """A step of GPUs that all do the same, made from one that they do not do the same in."""
    same = [
        replace(
            operation,
            busy_G=np.full(4, operation.busy_G[0]),
            transfer=None
            if operation.transfer is None
            else Transfer(operation.transfer.first_GG.mean() * (1 - np.eye(4)), np.zeros((4, 4))),
        )
        for operation in operations
    ]
    network = Ports(SLOW)
    one = as_one(in_sequence(same), network)
    assert len(one.operations[0].busy_G) == 1
    assert run(list(one.operations), 1).end_s == pytest.approx(run(same, 4).end_s, rel=rounding(1000))
    uneven = in_sequence([*same, compute("other", -1, *range(1, 5))])
    assert as_one(uneven, network) is uneven
