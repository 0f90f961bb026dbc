"""Ranks as processes of their own that talk over gloo."""

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


def run_gloo(ranks: int, folder: Path, work: Callable[..., Result], *given: Any) -> list[Result]:
    """What ``work(*given)``, a function of a module, returns on each rank; they meet in ``folder``."""
    # A server that has imported torch and forks the ranks: importing it in each takes longer than the tests.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["executor.counting", "tests.executor.plans"])
    with ProcessPoolExecutor(ranks, mp_context=context) as pool:
        store = str(folder / "store")
        futures = [pool.submit(_rank, store, rank, ranks, work, given) for rank in range(ranks)]
        return [future.result(LIMIT_S) for future in futures]


def _rank(store: str, rank: int, ranks: int, work: Callable[..., Result], given: tuple[Any, ...]) -> Result:
    torch.set_num_threads(1)
    patience = timedelta(seconds=LIMIT_S / 2)
    dist.init_process_group("gloo", f"file://{store}", patience, ranks, rank)
    try:
        return work(*given)
    finally:
        dist.destroy_process_group()
