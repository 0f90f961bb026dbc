"""The key figures of a run, as the terminal and the page show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from moesim.analysis.metrics import Unit, figures
from moesim.analysis.result_file import Result
from moesim.units import format_bytes, format_count, format_seconds, format_share

_WRITTEN: Final[Mapping[Unit, Callable[[float], str]]] = {
    "s": format_seconds,
    "B": format_bytes,
    "1/s": format_count,
    "share": format_share,
    "ratio": "{:.3f}".format,
    "times": "{:,}×".format,
}


def key_figures(result: Result) -> list[tuple[str, str, str]]:
    """Name, value, and a line that explains it, of every metric that has something to say."""
    return [(label, _WRITTEN[unit](value), note) for label, value, unit, note in figures(result)]
