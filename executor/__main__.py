"""``torchrun … -m executor PLAN -o OUT``: run a plan for real. One process is one rank."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from executor.launch import Launch
from executor.options import Options
from executor.patience import START_S
from executor.plan import read_plan
from executor.progress import Progress, progress_file
from traces.errors import MoesimError, OutputError

WRITES = ("timeline.parquet", "work.parquet", "run.json", "failure.json")
"""What a run may leave in its folder."""


def main() -> None:
    """Run this rank under the eyes of a watcher. Whatever ends it early is noted for the watcher to tell."""
    plan, options = _parse(sys.argv[1:])
    launch = Launch.from_environment()
    progress = Progress(progress_file(launch.agent), launch.first_rank, launch.local_ranks)
    mark = progress.mark(launch.rank)
    if launch.local_rank == 0:
        progress.patience_s = START_S
        _start_watcher(progress.path, launch, options.out)

    def patience(seconds: float) -> None:
        if launch.local_rank == 0:
            progress.patience_s = seconds

    try:
        _clear(options.out, launch)
        # Importing torch takes seconds, in which somebody watches already.
        from executor.run import run

        run(read_plan(plan), options, launch, mark, patience)
    except BaseException as fault:
        cause, exit_code, lost = _explain(fault)
        mark.fail(cause, exit_code, lost=lost)
        sys.stderr.flush()
        # An ordinary exit would wait for threads that wait for other ranks.
        os._exit(exit_code)
    mark.done()


def _parse(arguments: list[str]) -> tuple[Path, Options]:
    parser = argparse.ArgumentParser(
        "torchrun --nproc-per-node RANKS -m executor",
        description="Run a plan that `moesim execute --plan-only` wrote, and measure it.",
    )
    parser.add_argument("plan", metavar="PLAN", type=Path, help="the folder of the plan")
    parser.add_argument("-o", dest="out", metavar="OUT", type=Path, required=True, help="write here")
    parser.add_argument("--repeats", type=_from(1), default=5, help="measured runs of all steps")
    parser.add_argument("--warmup", type=_from(0), default=2, help="runs before them")
    parser.add_argument("--backend", default="loop", help="of the experts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--count", action="store_true", help="also count what arrives")
    parser.add_argument("--serial", action="store_true", help="one process, rank after rank")
    parser.add_argument("--threads", type=_from(1), default=1, help="of each rank, on CPU")
    given = vars(parser.parse_args(arguments))
    if given["count"] and given["serial"]:
        parser.error("--count needs all ranks, --serial has one")
    return given.pop("plan"), Options(**given)


def _from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least} (got {text})")
        return int(text)

    return number


def _start_watcher(file: Path, launch: Launch, out: Path) -> None:
    arguments = (file, launch.agent, launch.first_rank, launch.local_ranks, out)
    # In a session of its own: whoever ends the ranks must not end it first.
    subprocess.Popen(
        [sys.executable, "-m", "executor.watch", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _clear(out: Path, launch: Launch) -> None:
    """Make the folder, without what an earlier run left: a failed run must not pass for a finished one.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if launch.rank == 0:
            for name in WRITES:
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


if __name__ == "__main__":
    main()
