"""``python -m benchmarks.gpu``: our MoE layer checked and timed beside others; needs an NVIDIA GPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from benchmarks.gpu.cases import SHAPES, Shape, cases
from traces.errors import MoesimError
from traces.files import write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 2 where it cannot run, 1 where our layer is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="only this one; repeatable")
    parser.add_argument("--tune", action="store_true", help="look for better tiles instead")
    parser.add_argument("-o", "--out", type=Path, help="write the rows as JSON too")
    options = parser.parse_args(arguments)
    if find_spec("torch") is None or find_spec("triton") is None:
        return _refuse("needs torch and triton, which the extra executor installs")
    import torch

    if not torch.cuda.is_available():
        return _refuse("needs an NVIDIA GPU, and torch finds none")
    shapes = [SHAPES[name] for name in options.shape or SHAPES]
    return _tune(shapes) if options.tune else _compare(shapes, options.out)


def _refuse(why: str) -> int:
    print(f"benchmarks.gpu: {why}", file=sys.stderr)
    return 2


def _compare(shapes: Sequence[Shape], out: Path | None) -> int:
    from benchmarks.gpu import report
    from benchmarks.gpu.measure import WrongResultError, measure
    from benchmarks.gpu.rivals import Weights
    from benchmarks.gpu.roofline import Peaks

    peaks, rows, progress = Peaks.measured(), [], Console(stderr=True)
    for shape in shapes:
        weights = Weights.random(shape)
        for case in cases(shape):
            progress.print(f"{shape.name}, {case.load}, {case.tokens:,} tokens")
            try:
                rows.append(measure(case, weights, peaks))
            except WrongResultError as error:
                print(f"benchmarks.gpu: {case}: {error}", file=sys.stderr)
                return 1
    console = Console()
    console.print(report.table(rows))
    for line in report.summary(rows, peaks):
        console.print(line)
    if out is not None:
        try:
            write_text(out, report.as_json(rows, peaks))
        except MoesimError as error:
            print(f"benchmarks.gpu: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def _tune(shapes: Sequence[Shape]) -> int:
    from benchmarks.gpu.report import tuned_table
    from benchmarks.gpu.rivals import Weights
    from benchmarks.gpu.tuning import tune

    found = []
    for shape in shapes:
        weights = Weights.random(shape)
        found += [tune(case, weights) for case in cases(shape)]
    Console().print(tuned_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
