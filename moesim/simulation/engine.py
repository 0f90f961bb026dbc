"""Time: SimPy processes, one per rank, that run a step's operations in program order.

A collective completes for a rank when all that it waits for has arrived, and no rank leaves it before
every rank has entered: so ranks drift only inside a layer. A step ends for all ranks together, because
the schedulers of data-parallel ranks agree on the next batch before it starts.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.hardware.network import Network
from moesim.simulation.operations import Operation, Transfer

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class StepClock:
    """When each operation of a step ran. O operations, G ranks; seconds.

    Attributes:
        start_s, end_s: of the step; every rank starts together and waits for the last.
        start_OG: when the operation proper began: for a collective, when the last rank had entered.
        end_OG: when it ended. A rank waits from the end of one operation to the start of the next.
    """

    start_s: float
    end_s: float
    start_OG: FloatArray
    end_OG: FloatArray


class Meeting:
    """A collective: gathers the times at which ranks enter, then tells each when it may leave."""

    def __init__(self, env: simpy.Environment, ranks: int, transfer: Transfer, network: Network) -> None:
        self._env, self._transfer, self._network = env, transfer, network
        self._entered_G = [0.0] * ranks
        self._absent = ranks
        self.met = env.event()
        self.start_s = 0.0
        self.end_G: list[float] = []

    def enter(self, rank: int) -> simpy.Event:
        """Note that a rank is here; the event happens when all are."""
        self._entered_G[rank] = self._env.now
        self._absent -= 1
        if self._absent == 0:
            self.start_s = self._env.now
            transfer = self._transfer
            entered_G = np.array(self._entered_G)
            end_G = self._network.collective(entered_G, transfer.first_GG, transfer.second_GG)
            self.end_G = end_G.tolist()
            self.met.succeed()
        return self.met


def simulate(steps: Iterable[Sequence[Operation]], ranks: int, network: Network) -> Iterator[StepClock]:
    """Run steps one after the other on one clock, and yield when each operation ran.

    Args:
        steps: the operations of each step; consumed lazily, one step at a time.
        ranks: G, the length of every operation's arrays.
        network: the model that ends collectives.
    """
    env = simpy.Environment()
    for operations in steps:
        start_s = env.now
        meetings = [
            Meeting(env, ranks, operation.transfer, network) if operation.transfer else None
            for operation in operations
        ]
        seconds_OG = [operation.seconds_G.tolist() for operation in operations]
        overhead_O = [operation.overhead_s for operation in operations]
        end_OG = [[0.0] * ranks for _ in operations]
        processes = [
            env.process(_run_rank(env, rank, meetings, seconds_OG, overhead_O, end_OG))
            for rank in range(ranks)
        ]
        env.run(until=env.all_of(processes))
        ends_OG = np.array(end_OG)
        begins_OG = np.vstack([np.full((1, ranks), start_s), ends_OG[:-1]])
        for o, meeting in enumerate(meetings):
            if meeting is not None:
                begins_OG[o] = meeting.start_s
        yield StepClock(start_s, env.now, begins_OG, ends_OG)


def _run_rank(
    env: simpy.Environment,
    rank: int,
    meetings: Sequence[Meeting | None],
    seconds_OG: Sequence[Sequence[float]],
    overhead_O: Sequence[float],
    end_OG: Sequence[list[float]],
) -> Generator[simpy.Event, None, None]:
    for meeting, seconds_G, overhead_s, end_G in zip(meetings, seconds_OG, overhead_O, end_OG, strict=True):
        if meeting is None:
            yield env.timeout(seconds_G[rank])
        else:
            yield meeting.enter(rank)
            yield env.timeout(meeting.end_G[rank] - env.now + overhead_s)
        end_G[rank] = env.now
