"""Time: SimPy processes, one for each lane of each rank, that run a step's operations in program order.

A collective completes for a rank when all that it waits for has arrived, and no rank leaves it before
every rank has entered: so ranks drift only inside a layer. A step ends for all ranks together, because
the schedulers of data-parallel ranks agree on the next batch before it starts.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.hardware.transfer import Transfer
from moesim.simulation.conditions import Conditions
from moesim.simulation.program import Program

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class StepClock:
    """When each operation of a step ran. O operations, G ranks; seconds.

    Attributes:
        start_s, end_s: of the step; every rank starts together and waits for the last.
        entered_OG: when a rank was ready for it; from there to ``start_OG`` it waits for other ranks.
        start_OG: when the operation proper began: for a collective, when the last rank had entered.
        end_OG: when it ended.
    """

    start_s: float
    end_s: float
    entered_OG: FloatArray
    start_OG: FloatArray
    end_OG: FloatArray


class Links:
    """The links of a group of GPUs; loops that are given the same ones share their ports.

    Attributes:
        conditions: the state of links and GPUs over time.
        left_G: when each rank leaves the last collective that it has entered: whoever leaves early may enter
            the next one while others are still busy with this one, and nothing reaches a port before.
    """

    def __init__(self, conditions: Conditions, ranks: int) -> None:
        self.conditions = conditions
        self.left_G = np.zeros(ranks)

    def collective(
        self, entered_G: FloatArray, transfer: Transfer, stretch_G: FloatArray | None
    ) -> FloatArray:
        """[G]: when each rank leaves a collective that the last one enters now."""
        now = float(entered_G.max())
        # Only another loop can still be busy with a port whose rank has entered here.
        start_G = np.maximum(entered_G, self.left_G)
        network = self.conditions.network(now)
        end_G = network.collective(start_G, transfer.first_GG, transfer.second_GG, self.left_G)
        if stretch_G is not None:
            end_G = now + (end_G - now) * stretch_G
        self.left_G = end_G
        return end_G


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


def run_program(
    env: simpy.Environment, links: Links, program: Program
) -> Generator[simpy.Event, Any, StepClock]:
    """Run one step from now on, as part of a SimPy process; returns when each operation ran."""
    ranks, start_s = len(links.left_G), env.now
    # Ports that are free are free from now on, whenever they became so.
    links.left_G = np.maximum(links.left_G, start_s)
    run = _Run(env, program, links)
    lanes = [run.undisturbed(lane) for lane in program.lanes]
    yield env.all_of([env.process(run.lane(rank, groups)) for rank in range(ranks) for groups in lanes])
    return run.clock(start_s, env.now)


class _Run:
    """One step while it runs."""

    def __init__(self, env: simpy.Environment, program: Program, links: Links) -> None:
        self._env, self._program, self._conditions = env, program, links.conditions
        operations, ranks = program.operations, len(links.left_G)
        self._meetings = [
            Meeting(env, links, operation.transfer, operation.stretch_G) if operation.transfer else None
            for operation in operations
        ]
        self._seconds_OG = [operation.seconds_G.tolist() for operation in operations]
        self._entered_OG = [[0.0] * ranks for _ in operations]
        self._end_OG = [[0.0] * ranks for _ in operations]
        # Only what another lane waits for needs an event of its own.
        self._done = {at: [env.event() for _ in range(ranks)] for at in set(program.after.values())}

    def lane(self, rank: int, groups: Sequence[Sequence[int]]) -> Generator[simpy.Event, None, None]:
        """Run the operations of one lane of one rank, each undisturbed group in one sleep."""
        env, after = self._env, self._program.after
        for first, *others in groups:
            if first in after:
                yield self._done[after[first]][rank]
            self._entered_OG[first][rank] = env.now
            meeting = self._meetings[first]
            if meeting is not None:
                yield meeting.enter(rank)
                now = meeting.end_G[rank] + self._seconds_OG[first][rank]
            elif self._conditions.changing:
                now = env.now + self._conditions.seconds(self._program.operations[first], rank, env.now)
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
            free = self._meetings[at] is None and at not in self._program.after
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
