"""The key figures of a run, as the terminal and the page show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from moesim.analysis import metrics
from moesim.analysis.metrics import Unit
from moesim.analysis.result_file import Metrics
from moesim.units import format_bytes, format_count, format_seconds, format_share

_WRITTEN: Final[Mapping[Unit, Callable[[float], str]]] = {
    "s": format_seconds,
    "B": format_bytes,
    "1/s": format_count,
    "share": format_share,
    "ratio": "{:.3f}".format,
    "times": "{:,}×".format,
}


def key_figures(found: Metrics) -> list[tuple[str, str, str]]:
    """Name, value, and a line that explains it, of every metric that has something to say."""
    figures = [metric.figure for metric in metrics.METRICS if metric.figure is not None]
    return [
        (each.label, _WRITTEN[each.unit](number), each.note(found))
        for each in figures
        if (number := each.number(found)) is not None
    ]
