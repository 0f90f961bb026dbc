"""The results as a table, as one JSON object, and in a sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import geometric_mean
from typing import Any

import torch
import triton
from rich.table import Table

from benchmarks.gpu.measure import Row
from benchmarks.gpu.rivals import LAYERS
from benchmarks.gpu.roofline import Peaks
from benchmarks.gpu.tuning import Tuned

RIVALS = [name for name in LAYERS if name != "ours"]


def machine(peaks: Peaks) -> dict[str, Any]:
    """What was measured on."""
    return {
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "triton": triton.__version__,
        "gemm_flops": peaks.flops,
        "copy_bandwidth": peaks.bandwidth,
    }


def table(rows: Sequence[Row]) -> Table:
    """A line for each case; rivals as their time over ours."""
    found = Table(title="MoE layer, bf16: ours, and others' time over ours", title_justify="left")
    for name in ("shape", "load", "phase"):
        found.add_column(name)
    for name in ("tokens", "ours", "of roof"):
        found.add_column(name, justify="right")
    found.add_column("bound by")
    for name in RIVALS:
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
            *others,
        )
    return found


def summary(rows: Sequence[Row], peaks: Peaks) -> list[str]:
    """Against the best rival of each case, and against the GPU; then who is missing, and why."""
    found = machine(peaks)
    lines = [
        f"{found['device']}, torch {found['torch']}, triton {found['triton']}: "
        f"GEMM {peaks.flops / 1e12:.0f} TFLOP/s, copy {peaks.bandwidth / 1e12:.2f} TB/s"
    ]
    speedups = [row.speedup for row in rows if row.speedup is not None]
    if speedups:
        lines.append(
            f"against the best of the others: {geometric_mean(speedups):.2f} × in the geometric mean, "
            f"{min(speedups):.2f} × at worst"
        )
    for bound, peak in (("compute", "GEMM peak"), ("memory", "copy bandwidth")):
        shares = [row.reached for row in rows if row.bound == bound]
        if shares:
            lines.append(
                f"bound by {bound}: {geometric_mean(shares):.0%} of the {peak} in the geometric mean, "
                f"{min(shares):.0%} at worst"
            )
    missing = {(name, why) for row in rows for name, why in row.missing.items()}
    return lines + [f"{name}: {why}" for name, why in sorted(missing)]


def as_json(rows: Sequence[Row], peaks: Peaks) -> str:
    """All of it."""
    value = {
        "format": "moesim.gpu-benchmark/1",
        "machine": machine(peaks),
        "rows": [asdict(row) | {"speedup": row.speedup} for row in rows],
    }
    return json.dumps(value, indent=1) + "\n"


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
