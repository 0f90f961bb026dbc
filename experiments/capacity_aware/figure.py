"""Speedup against the capacity factor: both methods, measured and predicted, a panel for each model."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from matplotlib.figure import Figure

from experiments.capacity_aware.experiment import GAMMAS, METHODS, SETTINGS
from experiments.comparison import Comparison
from experiments.figure import save_figure


def draw(comparison: Comparison, path: Path) -> None:
    """Draw the rows of ``comparison``, measured with solid and predicted with dashed lines.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = iter(comparison.rows)
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    for axes, setting in zip(figure.subplots(1, len(SETTINGS)), SETTINGS, strict=True):
        for colour, method in enumerate(METHODS):
            mine = list(islice(rows, len(GAMMAS)))
            axes.plot(GAMMAS, [row.measured for row in mine], "o-", color=f"C{colour}", label=method)
            axes.plot(GAMMAS, [row.predicted for row in mine], "x--", color=f"C{colour}")
        axes.set_title(setting.name)
        axes.set_xticks(GAMMAS)
        axes.invert_xaxis()
        axes.set_xlabel("capacity factor γ")
        axes.set_ylim(1.0, None)
    first = figure.axes[0]
    first.set_ylabel("times as fast a layer")
    first.plot([], [], "kx--", label="predicted")
    first.legend(frameon=False)
    save_figure(figure, path)
