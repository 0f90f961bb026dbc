"""Ranks as processes of their own that talk over gloo, or on GPUs over NCCL."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

LIMIT_S = 180

Result = TypeVar("Result")
Sabotage = Callable[[int], None]


def run_processes(
    ranks: int, folder: Path, device: str, work: Callable[..., Result], *given: Any
) -> list[Result]:
    """What ``work(*given)``, a function of a module, returns on each rank; they meet in ``folder``."""
    context = _forkserver()
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


def torchrun_ranks(
    ranks: int,
    main: Callable[[], None],
    given: Path,
    out: Path,
    *arguments: str,
    sabotage: Sabotage | None = None,
) -> tuple[int, ...]:
    """The exit codes of so many ranks that run ``main`` on a file as torchrun would start them.

    Torchrun would report the errors in ``error-RANK.json``.
    """
    context = _forkserver()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    argv = ["executor", str(given), "-o", str(out), *arguments]
    processes = [
        context.Process(target=_torchrun_rank, args=(rank, ranks, store.port, main, argv, sabotage))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    until = time.monotonic() + LIMIT_S / 2
    for process in processes:
        process.join(until - time.monotonic())
    codes = tuple(process.exitcode for process in processes)
    for process in processes:
        process.kill()
    assert None not in codes, "a rank is left"
    return tuple(code for code in codes if code is not None)


def _torchrun_rank(
    rank: int, ranks: int, port: int, main: Callable[[], None], argv: list[str], sabotage: Sabotage | None
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_ERROR_FILE": str(Path(argv[3]) / f"error-{rank}.json"),
    }
    sys.argv = argv
    if sabotage is not None:
        sabotage(rank)
    main()


def _forkserver() -> multiprocessing.context.ForkServerContext:
    """Forks ranks from a process that has imported torch, which takes longer than the tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["executor.run", "executor.measuring.bench", "executor.measuring.counting", "tests.executor.plans"]
    )
    return context
