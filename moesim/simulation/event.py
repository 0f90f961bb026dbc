"""Time: SimPy processes, one for each lane of each rank, that run a step's operations in program order.

A collective completes for a rank when all that it waits for has arrived, and no rank leaves it before
every rank has entered: so ranks drift only inside a layer. A step ends for all ranks together, because
the schedulers of data-parallel ranks agree on the next batch before it starts.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import simpy

from moesim.hardware.transfer import Transfer
from moesim.simulation.clock import FloatArray, Links, StepClock
from moesim.simulation.program import Program


class Meeting:
    """A collective: gathers the times at which ranks enter, then tells each when it may leave."""

    def __init__(
        self, env: simpy.Environment, links: Links, transfer: Transfer, stretch_G: FloatArray | None = None
    ) -> None:
        self._env, self._links, self._transfer, self._stretch_G = env, links, transfer, stretch_G
        self._entered_G = np.zeros(len(links.left_G))
        self._absent = len(links.left_G)
        self.met = env.event()
        self.start_s = 0.0
        self.end_G: list[float] = []

    def enter(self, rank: int) -> simpy.Event:
        """Note that a rank is here; the event happens when all are."""
        self._entered_G[rank] = self._env.now
        self._absent -= 1
        if self._absent == 0:
            self.start_s = self._env.now
            self.end_G = self._links.collective(self._entered_G, self._transfer, self._stretch_G).tolist()
            self.met.succeed()
        return self.met


class EventClock:
    """Resolution ``event``: anything in its environment may interfere with anything. The reference."""

    def __init__(self, env: simpy.Environment, links: Links) -> None:
        self._env, self._links = env, links

    @property
    def now(self) -> float:
        """Seconds."""
        return float(self._env.now)

    def run(self, program: Program) -> Generator[simpy.Event, Any, StepClock]:
        """Run one step; see :class:`moesim.simulation.clock.Clock`."""
        env, links, start_s = self._env, self._links, self.now
        links.begin(start_s)
        run = _Run(env, program, links)
        lanes = [run.undisturbed(lane) for lane in program.order.lanes]
        ranks = range(len(links.left_G))
        yield env.all_of([env.process(run.lane(rank, groups)) for rank in ranks for groups in lanes])
        return run.clock(start_s, self.now)


class _Run:
    """One step while it runs."""

    def __init__(self, env: simpy.Environment, program: Program, links: Links) -> None:
        self._env, self._program, self._conditions = env, program, links.conditions
        operations, ranks = list(program.operations), len(links.left_G)
        self._operations = operations
        self._meetings = [
            Meeting(env, links, operation.transfer, operation.stretch_G) if operation.transfer else None
            for operation in operations
        ]
        self._seconds_OG = [operation.seconds_G.tolist() for operation in operations]
        self._entered_OG = [[0.0] * ranks for _ in operations]
        self._end_OG = [[0.0] * ranks for _ in operations]
        # Only what another lane waits for needs an event of its own.
        self._done = {at: [env.event() for _ in range(ranks)] for at in set(program.order.after.values())}

    def lane(self, rank: int, groups: Sequence[Sequence[int]]) -> Generator[simpy.Event, None, None]:
        """Run the operations of one lane of one rank, each undisturbed group in one sleep."""
        env, after = self._env, self._program.order.after
        for first, *others in groups:
            if first in after:
                yield self._done[after[first]][rank]
            self._entered_OG[first][rank] = env.now
            meeting = self._meetings[first]
            if meeting is not None:
                yield meeting.enter(rank)
                now = meeting.end_G[rank] + self._seconds_OG[first][rank]
            elif self._conditions.changing:
                now = env.now + self._conditions.seconds(self._operations[first], rank, env.now)
            else:
                now = env.now + self._seconds_OG[first][rank]
            last = first
            for at in others:
                self._end_OG[last][rank] = self._entered_OG[at][rank] = now
                now += self._seconds_OG[at][rank]
                last = at
            yield env.timeout(now - env.now)
            # The clock may differ from the sum by a rounding; what comes next starts by the clock.
            self._end_OG[last][rank] = max(env.now, self._entered_OG[last][rank])
            if last in self._done:
                self._done[last][rank].succeed()

    def undisturbed(self, lane: Sequence[int]) -> list[list[int]]:
        """Operations of a lane in groups: each begins where others have a say, the rest follows of itself."""
        groups: list[list[int]] = []
        for at in lane:
            free = self._meetings[at] is None and at not in self._program.order.after
            if free and groups and groups[-1][-1] not in self._done and not self._conditions.changing:
                groups[-1].append(at)
            else:
                groups.append([at])
        return groups

    def clock(self, start_s: float, end_s: float) -> StepClock:
        """When everything ran."""
        entered_OG, end_OG = np.array(self._entered_OG), np.array(self._end_OG)
        start_OG = entered_OG.copy()
        for at, meeting in enumerate(self._meetings):
            if meeting is not None:
                start_OG[at] = meeting.start_s
        return StepClock(start_s, end_s, entered_OG, start_OG, end_OG)
