"""What ``moesim calibrate`` prints."""

from __future__ import annotations

from typing import Any

from moesim.report.table import Table, numbers, words
from moesim.units import format_rate, format_seconds, format_share


def calibration_tables(found: dict[str, Any]) -> list[Table]:
    """What was found, and how well it predicts; ``found`` is what ``--json`` prints."""
    profile = found["profile"]
    quantities = [
        [
            line["name"],
            _value(line["value"], line["unit"]),
            "" if line["interval"] is None else _share(line["interval"]),
        ]
        for line in found["quantities"]
    ]
    quality = [
        [
            name,
            *(", ".join(map(_share, each[loads])) for loads in ("fitted", "left_out")),
            _share(each["noise"]),
        ]
        for name, each in found["quality"].items()
    ]
    return [
        Table(
            [*words("quantity"), *numbers("value", "± 95 %", whole=False)],
            quantities,
            title=f"{profile['name']}: {profile['origin']}",
        ),
        Table(
            [*words("phase"), *numbers("loads fitted", "loads left out", "noise of medians", whole=False)],
            quality,
            title="Predicted against measured, each layer on each rank: median error, 95th percentile",
        ),
    ]


def _share(share: float) -> str:
    return format_share(share, 1, gap="")


def _value(value: float, unit: str) -> str:
    if unit == "s":
        return format_seconds(value)
    return format_rate(value, unit) if unit else f"{value:.3g}"
