"""How far the clocks of ranks are apart: ping-pong with rank 0."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from executor.ranks.process_group import Group

_ROUNDS = 64


@dataclass(frozen=True)
class Offsets:
    """What to add to a rank's clock to have rank 0's. G ranks, nanoseconds.

    Attributes:
        at_G: when it was measured, on each rank's own clock.
        offset_G: 0 where the clocks differ by no more than ``error_G``: ranks of one machine share a clock.
        error_G: half of the shortest round trip.
    """

    at_G: NDArray[np.int64]
    offset_G: NDArray[np.int64]
    error_G: NDArray[np.int64]


def measure_offsets(group: Group) -> Offsets | None:
    """The offsets, on rank 0; None elsewhere.

    Of all round trips the shortest one counts: the answer was then given at the middle of it, plus or minus
    half of it (Cristian 1989, "Probabilistic clock synchronization", section 3).
    """
    if group.rank:
        for _ in range(_ROUNDS):
            _receive(0, group)
            _send(time.perf_counter_ns(), 0, group)
        return None
    now = time.perf_counter_ns()
    measured = [(now, 0, 0)] + [_ping(rank, group) for rank in range(1, group.ranks)]
    return Offsets(*(np.array(column, np.int64) for column in zip(*measured, strict=True)))


def _ping(rank: int, group: Group) -> tuple[int, int, int]:
    trips = []
    for _ in range(_ROUNDS):
        sent = time.perf_counter_ns()
        _send(sent, rank, group)
        answered = _receive(rank, group)
        back = time.perf_counter_ns()
        trips.append((back - sent, answered, (sent + back) // 2 - answered))
    length, answered, offset = min(trips)
    error = length // 2
    return answered, 0 if abs(offset) <= error else offset, error


def aligned(clock_N: NDArray[np.int64], rank: int, first: Offsets, last: Offsets) -> NDArray[np.int64]:
    """Times of a rank on rank 0's clock, if offsets drift evenly from the first measurement to the last.

    >>> ahead = [Offsets(np.array([0, at]), np.array([0, by]), np.zeros(2)) for at, by in ((0, 5), (100, 7))]
    >>> aligned(np.array([0, 50, 100]), 1, *ahead).tolist()
    [5, 56, 107]
    """
    times = first.at_G[rank], last.at_G[rank]
    offset_N = np.interp(clock_N, times, (first.offset_G[rank], last.offset_G[rank]))
    aligned_N: NDArray[np.int64] = clock_N + np.rint(offset_N).astype(np.int64)
    return aligned_N


def _send(value: int, rank: int, group: Group) -> None:
    dist.send(torch.tensor([value]), rank, group=group.control)


def _receive(rank: int, group: Group) -> int:
    value = torch.zeros(1, dtype=torch.int64)
    dist.recv(value, rank, group=group.control)
    return int(value)
