"""``python -m benchmarks.gpu``: our MoE layer checked and timed beside others; needs an NVIDIA GPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.gpu.cases import SHAPES, Case, Shape, cases
from traces.base.errors import MoesimError
from traces.base.files import write_text

_Cases = tuple[Shape, list[Case]]

if TYPE_CHECKING:
    from benchmarks.gpu.measure import Row


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 2 where it cannot run, 1 where our layer is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="only this one; repeatable")
    parser.add_argument("--tokens", type=int, action="append", help="only so large batches; repeatable")
    parser.add_argument("--tune", action="store_true", help="look for better tiles instead")
    parser.add_argument("-o", "--out", type=Path, help="write the rows as JSON too, after each of them")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="show what -o wrote instead")
    options = parser.parse_args(arguments)
    if find_spec("torch") is None or find_spec("triton") is None:
        return _refuse("needs torch and triton, which the extra executor installs")
    import torch

    if options.join is None and not torch.cuda.is_available():
        return _refuse("needs an NVIDIA GPU, and torch finds none")
    from benchmarks.gpu import report

    shapes = [SHAPES[name] for name in options.shape or SHAPES]
    chosen = [(shape, found) for shape in shapes if (found := list(cases(shape, options.tokens)))]
    if not chosen:
        return _refuse(f"no case has such a number of tokens: {options.tokens}")
    try:
        if options.join is not None:
            _show(*report.read_json(options.join))
            return 0
        return _tune(chosen) if options.tune else _compare(chosen, options.out)
    except MoesimError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return error.exit_code


def _refuse(why: str) -> int:
    print(f"benchmarks.gpu: {why}", file=sys.stderr)
    return 2


def _compare(chosen: Sequence[_Cases], out: Path | None) -> int:
    import torch

    from benchmarks.gpu import report
    from benchmarks.gpu.measure import WrongResultError, measure
    from benchmarks.gpu.rivals import Weights
    from benchmarks.gpu.roofline import Peaks

    peaks = Peaks.measured()
    machine, rows = report.machine_of(peaks), []
    for shape, batches in chosen:
        try:
            weights = Weights.random(shape)
            eight_bits = weights.eight_bits()
        except torch.OutOfMemoryError:
            print(f"benchmarks.gpu: {shape.name} is left out: its weights do not fit", file=sys.stderr)
            continue
        for case in batches:
            try:
                rows.append(measure(case, weights, eight_bits, peaks))
            except WrongResultError as error:
                print(f"benchmarks.gpu: {case}: {error}", file=sys.stderr)
                return 1
            print(report.line(rows[-1]), file=sys.stderr, flush=True)
            # After each, so that a run that is cut short has not been for nothing.
            if out is not None:
                write_text(out, report.as_json(rows, machine))
        # Before the next ones are made: together they might not fit.
        del weights, eight_bits
    _show(rows, machine)
    return 0


def _show(rows: Sequence[Row], machine: Mapping[str, Any]) -> None:
    from benchmarks.gpu import report

    # A log has no width of its own: all columns are whole there.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(report.table(rows))
    for line in report.summary(rows, machine):
        console.print(line, soft_wrap=True)


def _tune(chosen: Sequence[_Cases]) -> int:
    from benchmarks.gpu.report import tuned_table
    from benchmarks.gpu.rivals import Weights
    from benchmarks.gpu.tuning import tune

    found = []
    for shape, batches in chosen:
        weights = Weights.random(shape)
        for case in batches:
            found.append(tune(case, weights))
            print(found[-1], file=sys.stderr, flush=True)
        del weights
    Console().print(tuned_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
