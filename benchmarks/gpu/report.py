"""The results as a table, as one JSON object, and in a sentence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
import triton
from rich.table import Table

from benchmarks.gpu.cases import Case, Shape
from benchmarks.gpu.measure import Row
from benchmarks.gpu.rivals import RIVALS
from benchmarks.gpu.roofline import Peaks
from benchmarks.gpu.tuning import Tuned
from traces.base.errors import MoesimError
from traces.base.files import check_format


def machine_of(peaks: Peaks) -> dict[str, Any]:
    """What was measured on."""
    return {
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "triton": triton.__version__,
        "gemm_flops": peaks.flops,
        "copy_bandwidth": peaks.bandwidth,
    }


_MEAN, _WORST = 1.0, 0.95
"""Goals: the best other's time over ours, in the geometric mean and in each case."""
_SHARES = {"compute": ("GEMM peak", 0.6), "memory": ("copy bandwidth", 0.8)}
"""What binds, and the goal: the least share of it that each case reaches."""


def table(rows: Sequence[Row]) -> Table:
    """A line for each case; rivals, and ours with weights of eight bits, as their time over ours."""
    found = Table(title="MoE layer, bf16: ours, and others' time over ours", title_justify="left")
    for name in ("shape", "load", "phase"):
        found.add_column(name)
    for name in ("tokens", "ours", "of roof"):
        found.add_column(name, justify="right")
    found.add_column("bound by")
    for name in ("8 bits", *RIVALS):
        found.add_column(name, justify="right")
    for row in rows:
        case = row.case
        others = [
            f"{row.seconds[name] / row.seconds['ours']:.2f}" if name in row.seconds else "–"
            for name in RIVALS
        ]
        found.add_row(
            case.shape.name,
            case.load,
            case.phase,
            f"{case.tokens:,}",
            f"{row.seconds['ours'] * 1e6:,.0f} µs",
            f"{row.reached:.0%}",
            row.bound,
            f"{row.eight_bits_s / row.seconds['ours']:.2f}",
            *others,
        )
    return found


def line(row: Row) -> str:
    """One case while others are still to come."""
    best = "" if row.speedup is None else f", {row.speedup:.2f} × as fast as the best other"
    return (
        f"{_name(row.case)}: {row.seconds['ours'] * 1e6:,.0f} µs, "
        f"{row.reached:.0%} of what {row.bound} allows{best}"
    )


def summary(rows: Sequence[Row], machine: Mapping[str, Any]) -> list[str]:
    """Against the best rival of each case, and against the GPU, beside the goals; who is missing, and why."""
    lines = [
        f"{machine['device']}, torch {machine['torch']}, triton {machine['triton']}: "
        f"GEMM {machine['gemm_flops'] / 1e12:.0f} TFLOP/s, copy {machine['copy_bandwidth'] / 1e12:.2f} TB/s"
    ]
    speedups = [(row.speedup, _name(row.case)) for row in rows if row.speedup is not None]
    if speedups:
        mean, (worst, where) = geometric_mean(speedup for speedup, _ in speedups), min(speedups)
        lines += [
            f"against the best of the others: {mean:.3f} × in the geometric mean; {_goal(mean, _MEAN)}",
            f"  at worst {worst:.3f} × ({where}); {_goal(worst, _WORST)}",
        ]
    for bound, (peak, goal) in _SHARES.items():
        these = [row for row in rows if row.bound == bound]
        if these:
            share = geometric_mean(row.reached for row in these)
            eight_bits = geometric_mean(row.eight_bits_s / row.seconds["ours"] for row in these)
            least, where = min((row.reached, _name(row.case)) for row in these)
            lines += [
                f"bound by {bound}: {share:.1%} of the {peak} in the geometric mean",
                f"  at worst {least:.1%} ({where}); {_goal(least, goal)}",
                f"  with weights of eight bits {eight_bits:.2f} × the time",
            ]
    missing = Counter((name, why) for row in rows for name, why in row.missing.items())
    return lines + [
        f"{name}: {why}, in {times} of {len(rows)} cases" for (name, why), times in sorted(missing.items())
    ]


def _name(case: Case) -> str:
    return f"{case.shape.name}, {case.load}, {case.phase}, {case.tokens:,} tokens"


def _goal(found: float, goal: float) -> str:
    return f"goal {goal:.2f}: {'reached' if found >= goal else 'missed'}"


def as_json(rows: Sequence[Row], machine: Mapping[str, Any]) -> str:
    """All of it."""
    value = {
        "format": "moesim.gpu-benchmark/1",
        "machine": machine,
        "rows": [asdict(row) | {"speedup": row.speedup} for row in rows],
    }
    return json.dumps(value, indent=1) + "\n"


def read_json(files: Sequence[Path]) -> tuple[list[Row], dict[str, Any]]:
    """What several runs on one kind of machine wrote, with the peaks of the first.

    Raises:
        MoesimError: a file is no such result, or of another machine.
    """
    rows, machines = [], []
    for file in files:
        try:
            value = json.loads(file.read_bytes())
            check_format(value.get("format"), "gpu-benchmark", 1, file=file, error=MoesimError)
            machines.append(value["machine"])
            rows += [_row(row) for row in value["rows"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MoesimError(f"cannot be read: {error!r}", file=file) from error
        for key in ("device", "torch", "triton"):
            if machines[-1][key] != machines[0][key]:
                rule = f"must be of one machine, {machines[0][key]} as in {files[0]}"
                raise MoesimError(rule, file=file, field=f"machine.{key}", got=machines[-1][key])
    return rows, machines[0]


def _row(value: dict[str, Any]) -> Row:
    case = value["case"]
    named = {key: each for key, each in value.items() if key not in ("case", "speedup")}
    return Row(Case(**(case | {"shape": Shape(**case["shape"])})), **named)


def tuned_table(found: Sequence[Tuned]) -> Table:
    """What would be better than the choice."""
    lines = Table(title="Tiles: the best neighbour of each choice", title_justify="left")
    for name in ("shape", "load", "tokens", "gain", "chosen", "best"):
        lines.add_column(name)
    for tuned in found:
        case = tuned.case
        lines.add_row(
            case.shape.name,
            case.load,
            f"{case.tokens:,}",
            f"{tuned.speedup:.2f} ×",
            str(tuned.chosen),
            "the same" if tuned.best == tuned.chosen else str(tuned.best),
        )
    return lines
