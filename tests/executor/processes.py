"""Ranks as processes of their own that talk over gloo, or on GPUs over NCCL."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

LIMIT_S = 90

Result = TypeVar("Result")


def run_processes(
    ranks: int, folder: Path, device: str, work: Callable[..., Result], *given: Any
) -> list[Result]:
    """What ``work(*given)``, a function of a module, returns on each rank; they meet in ``folder``."""
    # A server that has imported torch and forks the ranks: importing it in each takes longer than the tests.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["executor.counting", "tests.executor.plans"])
    with ProcessPoolExecutor(ranks, mp_context=context) as pool:
        meeting = f"file://{folder / 'store'}"
        futures = [pool.submit(_rank, meeting, rank, ranks, device, work, given) for rank in range(ranks)]
        return [future.result(LIMIT_S) for future in futures]


def _rank(
    meeting: str, rank: int, ranks: int, device: str, work: Callable[..., Result], given: tuple[Any, ...]
) -> Result:
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    patience = timedelta(seconds=LIMIT_S / 2)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", meeting, patience, ranks, rank)
    try:
        return work(*given)
    finally:
        dist.destroy_process_group()
