"""Ranks as threads of this process: what torch.distributed does, without starting anything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from unittest import mock

import torch
from torch import Tensor

from executor.dispatch.hop import Peers
from executor.dispatch.transport import Groups, Transport

Result = TypeVar("Result")


def run_ranks(ranks: int, ranks_per_node: int, work: Callable[[Groups], Result]) -> list[Result]:
    """What ``work`` returns on each rank; a rank that fails ends the others, and its error is raised."""
    meeting = threading.Barrier(ranks, timeout=20)
    posted: dict[int, dict[int, Tensor]] = {}

    def exchange(
        _: Transport,
        peers: Peers,
        rows_XY: Tensor,
        sends: Sequence[int] | None = None,
        receives: Sequence[int] | None = None,
    ) -> Tensor:
        me = peers.ranks[peers.me]
        even = [len(rows_XY) // len(peers)] * len(peers)
        splits = torch.split(rows_XY, list(even if sends is None else sends))
        posted[me] = dict(zip(peers.ranks, splits, strict=True))
        meeting.wait()
        parts = [posted[peer][me] for peer in peers.ranks]
        assert [len(part) for part in parts] == list(even if receives is None else receives)
        meeting.wait()
        return torch.cat(parts)

    def guarded(rank: int) -> Result:
        try:
            return work(_groups(rank, ranks, ranks_per_node))
        except threading.BrokenBarrierError:
            raise
        except BaseException:
            meeting.abort()
            raise

    with mock.patch.object(Transport, "exchange", exchange), ThreadPoolExecutor(ranks) as pool:
        futures = [pool.submit(guarded, rank) for rank in range(ranks)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]


def _groups(rank: int, ranks: int, ranks_per_node: int) -> Groups:
    everyone = range(ranks)
    first = rank - rank % ranks_per_node
    world, rail, node = (
        Peers(None, tuple(members), members.index(rank))
        for members in (
            everyone,
            everyone[rank % ranks_per_node :: ranks_per_node],
            everyone[first : first + ranks_per_node],
        )
    )
    return Groups(rank, world, world if rail == world else rail, world if node == world else node)
