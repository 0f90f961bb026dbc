"""The loop: a source gives batches, each is priced, run on the clock, handed back, and recorded.

A loop is a SimPy process of an environment that it is given, so that several loops may share the clock and
the links.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import simpy

from moesim.simulation.clock import Clock, Links, StepClock
from moesim.simulation.conditions import Conditions
from moesim.simulation.event import EventClock
from moesim.simulation.program import Program
from moesim.simulation.step import CompiledClock

Batch = TypeVar("Batch")

Resolution = Literal["event", "step"]
"""Both give the same clock: one SimPy process for each lane of each rank, or one compiled function."""


class Priced(Protocol):
    """A step before it runs."""

    @property
    def program(self) -> Program:
        """What runs."""


Step = TypeVar("Step", bound=Priced)


@dataclass(frozen=True)
class Ready:
    """A step of which nothing but the program matters."""

    program: Program


class Source(Protocol[Batch]):
    """Where batches come from: a replay, or a scheduler that looks at the clock."""

    def next(self, now: float) -> Batch | None:
        """The batch that runs from ``now`` on; None ends the loop."""

    def done(self, batch: Batch, clock: StepClock) -> None:
        """Learn when a batch ran."""


class Replay(Generic[Batch]):
    """A source of batches that are known beforehand, whatever the clock says."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)

    def next(self, now: float) -> Batch | None:
        """The next one."""
        return next(self._batches, None)

    def done(self, batch: Batch, clock: StepClock) -> None:
        """Nothing depends on it."""


def loop(
    clock: Clock,
    source: Source[Batch],
    price: Callable[[Batch], Step],
    record: Callable[[Step, StepClock], None],
) -> Generator[simpy.Event, Any, None]:
    """Steps, one after the other, until the source has no more."""
    while (batch := source.next(clock.now)) is not None:
        step = price(batch)
        ran = yield from clock.run(step.program)
        source.done(batch, ran)
        record(step, ran)


def run_alone(
    source: Source[Batch],
    price: Callable[[Batch], Step],
    record: Callable[[Step, StepClock], None],
    ranks: int,
    conditions: Conditions,
    resolution: Resolution = "step",
) -> None:
    """Run a loop that has the clock and the links to itself."""
    env, links = simpy.Environment(), Links(conditions, ranks)
    clock: Clock = EventClock(env, links) if resolution == "event" else CompiledClock(links)
    env.run(until=env.process(loop(clock, source, price, record)))


def simulate(
    programs: Iterable[Program], ranks: int, conditions: Conditions, resolution: Resolution = "step"
) -> list[StepClock]:
    """When each operation of some steps ran, one step after the other on one clock.

    Args:
        ranks: G, the length of every operation's arrays.
        conditions: the state of links and GPUs over time.
    """
    clocks: list[StepClock] = []
    run_alone(Replay(programs), Ready, lambda _, clock: clocks.append(clock), ranks, conditions, resolution)
    return clocks
