"""What every experiment yields: measured against predicted, cell by cell, and what was fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One published cell.

    Attributes:
        case: what was run.
        unit: of ``measured`` and ``predicted``.
        left_out: prediction by a fit without this row; None where the row was never fitted.
    """

    case: str
    unit: str
    measured: float
    predicted: float
    left_out: float | None = None

    @property
    def error(self) -> float:
        """Relative to the measurement."""
        return self.predicted / self.measured - 1.0

    @property
    def left_out_error(self) -> float:
        """Error of a prediction that never saw the row."""
        return self.error if self.left_out is None else self.left_out / self.measured - 1.0

    def to_json(self) -> dict[str, Any]:
        """The row as the contract has it, its unit and its leave-one-out error beside it."""
        return {
            "case": self.case,
            "measured": self.measured,
            "predicted": self.predicted,
            "error": self.error,
            "unit": self.unit,
            "loo_error": self.left_out_error,
        }


@dataclass(frozen=True)
class Parameter:
    """A fitted number: ``value`` as printed, and the physical bound that it keeps."""

    name: str
    value: str
    bound: str


@dataclass(frozen=True)
class Comparison:
    """An experiment's result.

    Attributes:
        name: of the experiment.
        source: where the measurements were published.
        rows: what counts: cells that were fitted (their leave-one-out error tells more than their
            error), or predicted from a fit on others.
        checks: cells that were neither fitted nor asked for, and show how far the model carries.
        parameters: everything that was fitted.
        remarks: what else was found, a sentence each.
    """

    name: str
    source: str
    rows: tuple[Row, ...]
    checks: tuple[Row, ...]
    parameters: tuple[Parameter, ...]
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        return {
            "source": self.source,
            "rows": [row.to_json() for row in self.rows],
            "summary": summary(self.rows),
            "parameters": [vars(parameter) for parameter in self.parameters],
            "checks": [row.to_json() for row in self.checks],
            "remarks": list(self.remarks),
        }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Mean and largest error, and the mean leave-one-out error, as fractions."""
    errors = np.abs([row.error for row in rows])
    return {
        "mean_abs_error": float(errors.mean()),
        "max_abs_error": float(errors.max()),
        "loo_mean_abs_error": float(np.mean(np.abs([row.left_out_error for row in rows]))),
    }
