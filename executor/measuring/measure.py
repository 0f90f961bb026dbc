"""What a rank reaches at best, measured while all others do the same: they share caches, memory and cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from executor.ranks.process_group import Group

_ROUNDS = 7
_WIDTH = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices that are multiplied."""
_COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes, more than caches hold."""
_LAUNCHES = 1000


@dataclass(frozen=True)
class Peaks:
    """One rank's medians over a few rounds.

    Attributes:
        flops: FLOP per second of a large square GEMM.
        bandwidth: bytes per second, read and written, of a copy, or read by a sum, whichever is more.
        launch_s: of the smallest kernel in a row of many.
        exchange_s: of a few numbers with every other rank; 0 for a rank on its own.
    """

    flops: float
    bandwidth: float
    launch_s: float
    exchange_s: float


def measure_peaks(group: Group, dtype: torch.dtype) -> Peaks:
    """Called by all ranks at once."""
    device = group.device
    width, copied = _WIDTH[device.type], _COPIED[device.type]
    square = torch.randn(width, width, dtype=torch.float32).to(device, dtype)
    product = torch.empty_like(square)
    values = torch.ones(copied // 4, dtype=torch.float32, device=device)
    twin, one = torch.empty_like(values), torch.zeros(1, device=device)
    sent = torch.zeros(group.ranks, dtype=torch.int64, device=device)
    got = torch.empty_like(sent)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            one.add_(1.0)

    copy_s, sum_s = median_s(group, lambda: twin.copy_(values)), median_s(group, values.sum)
    alone = group.ranks == 1
    return Peaks(
        2.0 * width**3 / median_s(group, lambda: torch.mm(square, square, out=product)),
        max(2 * copied / copy_s, copied / sum_s),
        median_s(group, launches) / _LAUNCHES,
        0.0 if alone else median_s(group, lambda: dist.all_to_all_single(got, sent)),
    )


def median_s(group: Group, work: Callable[[], Any]) -> float:
    """Seconds of ``work``, which every rank begins at the same time; the first round does not count."""
    taken = []
    for _ in range(1 + _ROUNDS):
        group.barrier()
        start_s = time.perf_counter()
        work()
        if group.device.type == "cuda":
            torch.cuda.synchronize(group.device)
        taken.append(time.perf_counter() - start_s)
    return sorted(taken[1:])[_ROUNDS // 2]
