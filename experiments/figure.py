"""A figure of an experiment: predicted over measured, cell by cell."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.comparison import Comparison
from moesim.errors import OutputError
from traces.base.files import whole_file

_METADATA = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}


def check_figure(path: Path) -> None:
    """Refuse a file that no figure can be written to, before anything is computed.

    Raises:
        OutputError: another ending than .svg or .png, or no such folder.
    """
    if path.suffix not in _METADATA:
        raise OutputError("must end in .svg or .png", file=path)
    if not path.parent.is_dir():
        raise OutputError("is not a folder", file=path.parent)


def write_figure(comparison: Comparison, path: Path) -> None:
    """Draw measured and predicted side by side, one line for each row, with the error beside it.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = comparison.rows
    figure = Figure(figsize=(8.0, 1.2 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    heights = [len(rows) - 1 - i for i in range(len(rows))]
    # Units differ from row to row, so each is drawn in shares of what was measured.
    axes.axvline(1.0, color="0.5", linewidth=1.0)
    axes.hlines(heights, 1.0, [1.0 + row.error for row in rows], color="C0", linewidth=2.0)
    axes.plot([1.0 + row.error for row in rows], heights, "o", color="C0", label="fitted to all rows")
    axes.plot(
        [1.0 + row.left_out_error for row in rows], heights, "x", color="C1", label="fitted without this row"
    )
    axes.set_yticks(heights, [f"{row.case}: {row.measured:.4g} {row.unit}" for row in rows])
    axes.set_xlabel("predicted / measured")
    axes.set_title(comparison.name)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """The same bytes for the same figure: SVG ids come from a fixed salt, and no file carries a date.

    Raises:
        OutputError: the file cannot be written.
    """
    with mpl.rc_context({"svg.hashsalt": "moesim", "svg.fonttype": "none"}), whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], metadata=_METADATA[path.suffix], dpi=150)
