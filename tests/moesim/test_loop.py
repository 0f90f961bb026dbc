"""The loop: what a source sees of the clock, and two loops in one environment that share links."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import simpy

from moesim.hardware.network import Ports
from moesim.simulation.clock import Links, StepClock
from moesim.simulation.conditions import Conditions
from moesim.simulation.event import EventClock
from moesim.simulation.loop import Ready, Replay, loop, run_alone, simulate
from moesim.simulation.program import Program, in_sequence
from tests.moesim.programs import LAYERS, SLOW, collective, compute

CONDITIONS = Conditions([Ports(SLOW)])
# Rank 0 sends four bytes to rank 1, at one byte a second, after a second of work.
SENDS = in_sequence([compute("attention", 0, 1.0, 1.0), collective("dispatch", 0, [[0.0, 4.0], [0.0, 0.0]])])


@dataclass
class Until:
    """The same step again and again, until the clock says that it is late."""

    late_s: float
    asked: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    def next(self, now: float) -> Program | None:
        self.asked.append(now)
        return SENDS if now < self.late_s else None

    def done(self, batch: Program, clock: StepClock) -> None:
        assert batch is SENDS
        self.ended.append(clock.end_s)


def test_a_source_may_look_at_the_clock() -> None:
    source, steps = Until(9.0), 0

    def record(step: Ready, clock: StepClock) -> None:
        nonlocal steps
        steps += 1
        # The source has learnt of the batch before the step is recorded.
        assert source.ended[-1] == clock.end_s

    run_alone(source, Ready, record, 2, CONDITIONS)
    assert source.asked == [0.0, 5.0, 10.0]
    assert (source.ended, steps) == ([5.0, 10.0], 2)


def together(*links: Links, steps: int = 1, delay_s: float = 0.0) -> list[list[StepClock]]:
    """Clocks of one loop for each of ``links``, all in one environment, each a while after the one before."""
    env = simpy.Environment()
    clocks: list[list[StepClock]] = [[] for _ in links]

    def begin(at: int) -> simpy.events.ProcessGenerator:
        yield env.timeout(at * delay_s)
        clock, record = EventClock(env, links[at]), clocks[at].append
        yield from loop(clock, Replay([SENDS] * steps), Ready, lambda _, ran: record(ran))

    for at in range(len(links)):
        env.process(begin(at))
    env.run()
    return clocks


def test_two_loops_over_one_link_wait_for_each_other() -> None:
    """By hand: the first sends from 1 s to 5 s; the second wants to from 2 s on, and gets 5 s to 9 s."""
    shared = Links(CONDITIONS, 2)
    (first,), (second,) = together(shared, shared, delay_s=1.0)
    assert first.end_OG.tolist() == [[1.0, 1.0], [5.0, 5.0]]
    assert second.start_s == 1.0
    assert second.entered_OG[1].tolist() == [2.0, 2.0]
    assert second.end_OG.tolist() == [[2.0, 2.0], [9.0, 9.0]]


def test_two_loops_over_links_of_their_own_do_not_notice_each_other() -> None:
    both = together(Links(CONDITIONS, 2), Links(CONDITIONS, 2), steps=3, delay_s=1.0)
    alone = simulate([SENDS] * 3, 2, CONDITIONS)
    for at, clocks in enumerate(both):
        assert [each.end_s - at for each in clocks] == pytest.approx([each.end_s for each in alone])


def test_a_transfer_may_outlast_the_step_beside_it() -> None:
    """Links that are taken until 20 s hold up a collective, and nothing before it."""
    links = Links(CONDITIONS, 2)
    env = simpy.Environment()
    clocks: list[StepClock] = []

    def copying() -> simpy.events.ProcessGenerator:
        yield env.timeout(0.5)
        links.left_G = links.left_G * 0.0 + 20.0

    env.process(copying())
    env.process(loop(EventClock(env, links), Replay([SENDS]), Ready, lambda _, clock: clocks.append(clock)))
    env.run()
    (clock,) = clocks
    assert clock.end_OG.tolist() == [[1.0, 1.0], [24.0, 24.0]]


def test_what_a_price_raises_comes_out_as_it_is() -> None:
    error = ValueError("no such batch")

    def price(batch: Program) -> Ready:
        raise error

    with pytest.raises(ValueError, match="no such batch") as caught:
        run_alone(Replay([SENDS]), price, lambda step, clock: None, 2, CONDITIONS)
    assert caught.value is error


def test_programs_that_are_known_run_one_after_the_other() -> None:
    first, second = simulate([in_sequence(LAYERS), SENDS], 2, CONDITIONS)
    assert (first.end_s, second.start_s, second.end_s) == (25.25, 25.25, 30.25)
