"""One rank under the eyes of a watcher: whatever ends it early is told, and ends the other ranks too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from executor.ranks.launch import Launch, tell_torchrun
from executor.ranks.progress import Mark, Progress, progress_file
from executor.ranks.watch import Verdict
from traces.base.errors import MoesimError, OutputError
from traces.base.processes import end_with
from traces.base.text import visible

Patience = Callable[[float], None]
"""Told how many seconds any rank may stay in one phase from now on."""

START_S = 120.0
"""Patience with a rank that imports torch, meets the others, and compiles."""

FAILURE = "failure.json"
"""Where the watcher leaves its verdict."""


def supervised(out: Path, writes: Sequence[str], work: Callable[[Launch, Mark, Patience], None]) -> None:
    """Do the work of this rank; whatever ends it early is noted for the watcher to tell.

    Args:
        out: the folder for the results.
        writes: names of results, of which none may be left from an earlier run.
        work: given which rank this is, the mark that it sets at each phase, and the patience
            that it asks of the watcher. Importing torch belongs in there: it takes seconds.
    """
    launch = Launch.from_environment()
    if launch.meeting is not None:
        end_with(launch.agent)
    progress = Progress(progress_file(launch.agent, launch.meeting), launch.first_rank, launch.local_ranks)
    mark = progress.mark(launch.rank)
    if launch.local_rank == 0:
        progress.patience_s = START_S
        _start_watcher(progress.path, launch, out)

    def patience(seconds: float) -> None:
        if launch.local_rank == 0:
            progress.patience_s = seconds

    try:
        _clear(out, (*writes, FAILURE), launch)
        work(launch, mark, patience)
    except BaseException as fault:
        cause, exit_code, lost = _explain(fault)
        if not lost:
            tell_torchrun(cause)
        mark.fail(cause, exit_code, lost=lost)
        if launch.agent == os.getpid():
            # Nobody waits for more than this process: the watcher would speak too late.
            (record,) = progress.read()
            said = Verdict(record, f"failed: {cause}").message
            print(visible(f"executor: {said}"), file=sys.stderr)
        sys.stderr.flush()
        # An ordinary exit would wait for threads that wait for other ranks.
        os._exit(exit_code)
    mark.done()


def _start_watcher(file: Path, launch: Launch, out: Path) -> None:
    arguments = (file, launch.agent, launch.first_rank, launch.local_ranks, out)
    # In a session of its own: whoever ends the ranks must not end it first.
    subprocess.Popen(
        [sys.executable, "-m", "executor.ranks.watch", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _clear(out: Path, names: Sequence[str], launch: Launch) -> None:
    """Make the folder, without what an earlier run left: a failed run must not pass for a finished one.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if launch.rank == 0:
            for name in names:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=out) from error


def _explain(fault: BaseException) -> tuple[str, int, bool]:
    """(cause, exit code, whether it only follows from what another rank did)."""
    if isinstance(fault, MoesimError):
        return str(fault), fault.exit_code, False
    first_line = re.sub(r"^\[[^]]*\] *", "", str(fault).partition("\n")[0])
    text = f"{type(fault).__name__}: {first_line}"
    # torch raises a RuntimeError of its own for each library that moves data between ranks.
    if isinstance(fault, RuntimeError) and re.search("gloo|NCCL", str(fault)):
        return first_line, 1, True
    if isinstance(fault, MemoryError) or re.search("out of memory|can't allocate", str(fault)):
        return f"out of memory: {text}", 1, False
    traceback.print_exception(fault)
    return text, 1, False
