"""The loss curves of the trained models, and what the experts are worth beside a dense model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from experiments.figure import save_figure

HERE = Path(__file__).parent
CURVES = {"experts": HERE / "curve.json", "dense": HERE / "curve_dense.json"}
"""What trainings have written, of the model with experts and of the one without."""

_DOMAINS = {"code_loss": "code", "prose_loss": "prose"}


@dataclass(frozen=True)
class Curve:
    """A training.

    Attributes:
        points: at each checkpoint the step, the losses in nats a byte, and the seconds so far.
    """

    points: list[dict[str, float]]

    @classmethod
    def read(cls, file: Path) -> Curve:
        """What :func:`experiments.tiny_moe.train.train` wrote."""
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return cls(found["curve"])

    def column(self, name: str) -> list[float]:
        """One number of every point."""
        return [point[name] for point in self.points]


def curve_table(curves: dict[str, Curve]) -> Table:
    """Where each training ended."""
    table = Table(title="held-out loss at the end, nats a byte", title_justify="left")
    for column in ("model", "steps", *_DOMAINS.values(), "minutes"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, curve in curves.items():
        last = curve.points[-1]
        losses = (f"{last[domain]:.4f}" for domain in _DOMAINS)
        table.add_row(name, f"{last['step']:.0f}", *losses, f"{last['seconds'] / 60:.0f}")
    return table


def draw_curves(curves: dict[str, Curve], path: Path) -> None:
    """Held-out loss by step, a colour for each domain, the dense model dashed.

    Raises:
        OutputError: the file cannot be written.
    """
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for (name, curve), style in zip(curves.items(), ("-", "--"), strict=False):
        for colour, (column, domain) in zip(("C0", "C1"), _DOMAINS.items(), strict=True):
            axes.plot(
                curve.column("step"), curve.column(column), style, color=colour, label=f"{domain}, {name}"
            )
    axes.set_xlabel("step")
    axes.set_ylabel("held-out loss, nats a byte")
    axes.legend(frameon=False)
    save_figure(figure, path)
