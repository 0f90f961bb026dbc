"""The ranks of a run, and how they talk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed import FileStore  # type: ignore[attr-defined]

from executor.plan.errors import PlanError
from executor.ranks.launch import Launch

TIMEOUT_S = 120.0
"""Least time-out of a collective. A rank of the own node that hangs is noticed earlier, by its watcher."""


@dataclass(frozen=True)
class Group:
    """The joined ranks.

    Attributes:
        device: where this rank computes; its collectives are gloo's on CPU, NCCL's on GPU.
        control: a gloo group of all ranks, for what lies in the host's memory; None for a rank on its own.
        timeout: of its collectives.
    """

    rank: int
    ranks: int
    device: torch.device
    control: dist.ProcessGroup | None
    timeout: timedelta = timedelta(seconds=TIMEOUT_S)

    def gather(self, rows_N: NDArray[Any]) -> list[NDArray[Any]]:
        """Every rank's rows, on rank 0; an empty list elsewhere. All ranks have the same dtype and columns.

        Numbers, never objects: those would be unpickled here, whoever sent them.
        """
        if self.control is None:
            return [rows_N]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.ranks)]
        dist.all_gather(sizes, torch.tensor([len(rows_N)]), group=self.control)
        most = max(int(size) for size in sizes)
        padded_N = torch.from_numpy(np.resize(rows_N, (most, *rows_N.shape[1:])))
        found = [torch.empty_like(padded_N) for _ in sizes] if self.rank == 0 else None
        dist.gather(padded_N, found, dst=0, group=self.control)
        return [each[: int(size)].numpy() for each, size in zip(found or (), sizes, strict=False)]

    def barrier(self) -> None:
        """Wait until every rank is here and its device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.control is not None:
            dist.barrier(self.control)


@contextmanager
def joined(launch: Launch, device: torch.device, slowest_s: float = 0.0) -> Iterator[Group]:
    """The group of all ranks, left at the end.

    Args:
        slowest_s: how long a healthy rank may keep the others waiting.
    """
    if launch.ranks == 1:
        yield Group(0, 1, device, None)
        return
    gpu = device.type == "cuda"
    timeout = timedelta(seconds=max(TIMEOUT_S, 2 * slowest_s))
    backend = "nccl" if gpu else "gloo"
    if launch.meeting is None:
        dist.init_process_group(backend, timeout=timeout)
    else:
        # A file, which nobody else can open, where torchrun has a server, which anybody can reach.
        store = FileStore(str(launch.meeting / "store"), launch.ranks)
        dist.init_process_group(
            backend, store=store, rank=launch.rank, world_size=launch.ranks, timeout=timeout
        )
    try:
        control = dist.new_group(backend="gloo", timeout=timeout)
        yield Group(launch.rank, launch.ranks, device, control, timeout)
    finally:
        dist.destroy_process_group()


def device_of(kind: str, launch: Launch) -> torch.device:
    """The device of this rank.

    Raises:
        PlanError: there is no such GPU.
    """
    if kind == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if launch.local_rank >= found:
        raise PlanError(
            f"this node has {found} GPUs, {launch.local_ranks} ranks need one each", field="device", got=kind
        )
    device = torch.device("cuda", launch.local_rank)
    torch.cuda.set_device(device)
    return device
