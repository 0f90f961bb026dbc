"""Time: SimPy processes, one for each lane of each rank, that run a step's operations in program order.

A collective completes for a rank when all that it waits for has arrived, and no rank leaves it before
every rank has entered: so ranks drift only inside a layer. A step ends for all ranks together, because
the schedulers of data-parallel ranks agree on the next batch before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.hardware.network import Network
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


class Meeting:
    """A collective: gathers the times at which ranks enter, then tells each when it may leave.

    ``left_G``, shared by the collectives of a step, is when each rank left the last one: whoever leaves early
    may enter the next one while others are still busy with this one.
    """

    def __init__(
        self,
        env: simpy.Environment,
        transfer: Transfer,
        network: Callable[[float], Network],
        left_G: FloatArray,
        stretch_G: FloatArray | None = None,
    ) -> None:
        self._env, self._transfer, self._network, self._left_G = env, transfer, network, left_G
        self._stretch_G = stretch_G
        self._entered_G = [0.0] * len(left_G)
        self._absent = len(left_G)
        self.met = env.event()
        self.start_s = 0.0
        self.end_G: list[float] = []

    def enter(self, rank: int) -> simpy.Event:
        """Note that a rank is here; the event happens when all are."""
        self._entered_G[rank] = self._env.now
        self._absent -= 1
        if self._absent == 0:
            self.start_s = self._env.now
            transfer, network = self._transfer, self._network(self.start_s)
            entered_G = np.array(self._entered_G)
            end_G = network.collective(entered_G, transfer.first_GG, transfer.second_GG, self._left_G)
            if self._stretch_G is not None:
                end_G = self.start_s + (end_G - self.start_s) * self._stretch_G
            self._left_G[:] = end_G
            self.end_G = end_G.tolist()
            self.met.succeed()
        return self.met


def simulate(steps: Iterable[Program], ranks: int, conditions: Conditions) -> Iterator[StepClock]:
    """Run steps one after the other on one clock, and yield when each operation ran.

    Args:
        steps: the program of each step; consumed lazily, one step at a time.
        ranks: G, the length of every operation's arrays.
        conditions: the state of links and GPUs over time.
    """
    env = simpy.Environment()
    for program in steps:
        run = _Run(env, program, ranks, conditions)
        start_s = env.now
        lanes = [run.undisturbed(lane) for lane in program.lanes]
        processes = [env.process(run.lane(rank, groups)) for rank in range(ranks) for groups in lanes]
        env.run(until=env.all_of(processes))
        yield run.clock(start_s, env.now)


class _Run:
    """One step while it runs."""

    def __init__(self, env: simpy.Environment, program: Program, ranks: int, conditions: Conditions) -> None:
        self._env, self._program, self._ranks, self._conditions = env, program, ranks, conditions
        operations = program.operations
        left_G = np.full(ranks, env.now, np.float64)
        self._meetings = [
            Meeting(env, operation.transfer, conditions.network, left_G, operation.stretch_G)
            if operation.transfer
            else None
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
