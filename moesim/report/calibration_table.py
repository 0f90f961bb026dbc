"""What ``moesim calibrate`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from moesim.units import format_rate, format_seconds


def calibration_tables(found: dict[str, Any]) -> list[Table]:
    """What was found, and how well it predicts; ``found`` is what ``--json`` prints."""
    profile = found["profile"]
    quantities = _table(f"{profile['name']}: {profile['origin']}", ("quantity", "value", "± 95 %"))
    for line in found["quantities"]:
        interval = line["interval"]
        quantities.add_row(
            line["name"], _value(line["value"], line["unit"]), "" if interval is None else f"{interval:.1%}"
        )
    quality = _table(
        "Predicted against measured, each layer on each rank: median error, 95th percentile",
        ("phase", "loads fitted", "loads left out", "noise of medians"),
    )
    for name, each in found["quality"].items():
        spreads = (f"{median:.1%}, {p95:.1%}" for median, p95 in (each["fitted"], each["left_out"]))
        quality.add_row(name, *spreads, f"{each['noise']:.1%}")
    return [quantities, quality]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _value(value: float, unit: str) -> str:
    if unit == "s":
        return format_seconds(value)
    return format_rate(value, unit) if unit else f"{value:.3g}"
