"""Copies of experts on their way: worked by hand, and what always holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.hardware.network import Ports
from moesim.hardware.transfer import Transfer
from moesim.simulation.conditions import Conditions
from moesim.simulation.loop import simulate
from moesim.simulation.migration import Beside, Traffic, stall, transfer_s
from moesim.simulation.operations import Operation
from moesim.simulation.order import Order
from moesim.simulation.program import Program, in_sequence, two_batches
from tests.examples import examples
from tests.moesim.programs import LAYERS, SLOW, chains, collective, compute
from tests.tolerance import rounding

PORTS = Ports(SLOW)
STEP = [
    compute("attention", 0, 1.0, 3.0),
    collective("dispatch", 0, [[0.0, 2.0], [0.0, 0.0]]),
    compute("experts", 0, 2.0, 2.0),
    collective("combine", 0, [[0.0, 0.0], [2.0, 0.0]]),
]


def sent(*bytes_L: float) -> np.ndarray:
    """[L, G, G], from GPU 0 to GPU 1."""
    bytes_LGG = np.zeros((len(bytes_L), 2, 2))
    bytes_LGG[:, 0, 1] = bytes_L
    return bytes_LGG


def length(program: Program, ranks: int = 2) -> float:
    (clock,) = simulate([program], ranks, Conditions([PORTS]))
    return clock.end_s


def test_a_layer_goes_on_whenever_the_links_let_it() -> None:
    """1 byte a second: 1 s of attention on the faster GPU, then 2 s each of dispatch, experts, combine."""
    program, beside = in_sequence(STEP), Beside(sent(6.0, 0.0, 1.0), 0.0, PORTS)
    found = beside.during(program)
    assert {at: bytes_GG.tolist() for at, bytes_GG in found.items()} == {
        1: [[0.0, 2.0], [0.0, 0.0]],
        # 5 of the 6 bytes have gone; the last, and the third layer's one.
        3: [[0.0, 2.0], [0.0, 0.0]],
    }
    assert beside.arrived() == [0, 1, 2]
    assert beside.arrived() == []
    assert beside.done
    # GPU 0 sends from 1 s on, 4 bytes instead of 2; the combine goes the other way, so nothing is lost there.
    assert length(program) == 3 + 2 + 2
    assert length(Traffic(beside=found).join(program)) == 1 + 4 + 2 + 2


def test_nothing_is_sent_before_the_solver_is_done() -> None:
    program, beside = in_sequence(STEP), Beside(sent(3.0), 6.5, PORTS)
    assert {at: bytes_GG[0, 1] for at, bytes_GG in beside.during(program).items()} == {3: 0.5}
    assert not beside.arrived()
    assert {at: bytes_GG[0, 1] for at, bytes_GG in beside.during(program).items()} == {1: 1.5}
    assert beside.arrived() == [0]


def test_a_layer_whose_experts_stay_on_their_gpus_arrives_at_once() -> None:
    beside = Beside(sent(0.0, 0.0), 0.0, PORTS)
    assert beside.during(in_sequence(STEP)) == {}
    assert beside.arrived() == [0, 1]


def test_two_micro_batches_leave_no_link_idle() -> None:
    program, beside = two_batches(STEP, STEP), Beside(sent(7.0), 0.0, PORTS)
    found = beside.during(program)
    assert {at: bytes_GG[0, 1] for at, bytes_GG in found.items()} == {1: 2.0, 5: 2.0, 3: 2.0, 7: 1.0}
    assert length(program) <= length(Traffic(beside=found).join(program)) <= length(program) + 7


def test_a_shared_expert_beside_a_transfer_is_no_idle_time() -> None:
    shared = [*STEP[:1], compute("shared_expert", 0, 5.0, 5.0), *STEP[1:]]
    chain = Program(shared, Order([[0, 1, 3], [2, 4]], {2: 0, 3: 2, 4: 3}))
    beside = Beside(sent(100.0), 0.0, PORTS)
    beside.during(chain)
    # 1 + 2 + 2 + 2 of 100 seconds.
    assert beside._stages[0].left_s == pytest.approx(93.0)


def test_a_stall_runs_first_and_all_others_after_it() -> None:
    move = stall(np.array([[0.0, 4.0], [0.0, 0.0]]), 0.5)
    for program in (in_sequence(LAYERS), two_batches(LAYERS, LAYERS)):
        stalled = Traffic(stall=move).join(program)
        (clock,) = simulate([stalled], 2, Conditions([PORTS]))
        first_OG = clock.entered_OG[:-1]
        assert clock.end_OG[-1].tolist() == [4.5, 4.5]
        assert first_OG.min() == 4.5
        assert clock.end_s == pytest.approx(length(program) + 4.5)


def test_without_traffic_a_step_is_itself() -> None:
    program = in_sequence(STEP)
    assert Traffic().join(program) is program


@settings(max_examples=examples(50))
@given(chain=chains(), seed=st.integers(0, 2**32), two=st.booleans(), solve_s=st.sampled_from([0.0, 1.0]))
def test_every_byte_goes_once_and_nothing_takes_more_than_twice(
    chain: list[Operation], seed: int, two: bool, solve_s: float
) -> None:
    rng = np.random.default_rng(seed)
    bytes_LGG = rng.integers(0, 9, (3, 4, 4)) * (1.0 - np.eye(4))
    # Without kernels the links are never idle, so that every byte travels beside a collective.
    bare = [each for each in chain if each.transfer is not None]
    if not any(transfer_s(PORTS, each.transfer) for each in bare if each.transfer is not None):
        return
    program = two_batches(chain, chain) if two else in_sequence(bare)
    beside = Beside(bytes_LGG, solve_s, PORTS)
    moved_GG, rows = np.zeros((4, 4)), []
    while not beside.done:
        for at, more_GG in beside.during(program).items():
            own = program.operations[at].transfer
            assert own is not None
            none_GG = np.zeros((4, 4))
            together = own.then(Transfer(more_GG, none_GG))
            assert transfer_s(PORTS, together) <= 2 * transfer_s(PORTS, own) + 1e-9
            moved_GG += more_GG
        rows += beside.arrived()
    assert rows == [0, 1, 2]
    np.testing.assert_allclose(moved_GG, bytes_LGG.sum(axis=0), rtol=rounding(10**6), atol=rounding(10**6))
