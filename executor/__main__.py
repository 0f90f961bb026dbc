"""``torchrun … -m executor PLAN -o OUT``: run a plan for real. One process is one rank."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from executor.plan.options import Options
from executor.plan.plan_file import read_plan
from executor.ranks.launch import Launch, tell_torchrun
from executor.ranks.progress import Mark
from executor.ranks.supervised import Patience, supervised
from traces.base.text import visible

WRITES = ("timeline.parquet", "work.parquet", "run.json")
"""What a run may leave in its folder."""

USUAL = {"cpu": "loop", "cuda": "grouped_mm"}
"""The back end of the experts on each kind of device."""


def main() -> None:
    """Run this rank."""
    plan, imports, options = _parse(sys.argv[1:])

    def work(launch: Launch, mark: Mark, patience: Patience) -> None:
        # Importing torch takes seconds, in which somebody watches already.
        from executor.measuring.table import table
        from executor.run import run

        measured = run(read_plan(plan, imports=imports), options, launch, mark, patience)
        if measured is not None:
            print(f"{table(measured)}\n" + visible(f"files: {options.out}"), flush=True)

    supervised(options.out, WRITES, work)


class _Parser(argparse.ArgumentParser):
    """Its errors are known to torchrun too."""

    def error(self, message: str) -> NoReturn:
        tell_torchrun(message)
        super().error(message)


def _parse(arguments: list[str]) -> tuple[Path, bool, Options]:
    parser = _Parser(
        "torchrun --nproc-per-node RANKS -m executor",
        description="Run a plan that `moesim execute --plan-only` wrote, and measure it.",
    )
    parser.add_argument("plan", metavar="PLAN", type=Path, help="the folder of the plan")
    parser.add_argument("-o", dest="out", metavar="OUT", type=Path, required=True, help="write here")
    parser.add_argument("--repeats", type=_from(1), default=5, help="measured runs of all steps")
    parser.add_argument("--warmup", type=_from(0), default=2, help="runs before them")
    usual = ", ".join(f"{name} on {device}" for device, name in USUAL.items())
    parser.add_argument("--backend", help=f"of the experts; by default {usual}")
    parser.add_argument("--device", choices=tuple(USUAL), default="cpu")
    parser.add_argument("--count", action="store_true", help="also count what arrives")
    parser.add_argument("--serial", action="store_true", help="one process, rank after rank")
    parser.add_argument("--threads", type=_from(1), default=1, help="of each rank, on CPU")
    parser.add_argument(
        "--allow-imports",
        action="store_true",
        help="the plan may name policies by import path: their code runs",
    )
    given = vars(parser.parse_args(arguments))
    if given["count"] and given["serial"]:
        parser.error("--count needs all ranks, --serial has one")
    given["backend"] = given["backend"] or USUAL[given["device"]]
    return given.pop("plan"), given.pop("allow_imports"), Options(**given)


def _from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least} (got {text})")
        return int(text)

    return number


if __name__ == "__main__":
    main()
