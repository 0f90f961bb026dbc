"""What every experiment yields: measured against predicted, cell by cell, and what was fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import t

_TWO_SIDED = 0.95
"""Probability below the upper end of a 90 % interval."""


@dataclass(frozen=True)
class Row:
    """One published cell.

    Attributes:
        case: what was run.
        unit: of ``measured`` and ``predicted``.
        left_out: prediction by a fit without this row; None where the row was never fitted.
        ends: of a 90 % interval that was made without the measurement, if there is one.
    """

    case: str
    unit: str
    measured: float
    predicted: float
    left_out: float | None = None
    ends: tuple[float, float] | None = None

    @property
    def error(self) -> float:
        """Relative to the measurement."""
        return self.predicted / self.measured - 1.0

    @property
    def left_out_error(self) -> float:
        """Error of a prediction that never saw the row."""
        return self.error if self.left_out is None else self.left_out / self.measured - 1.0

    @property
    def inside(self) -> bool:
        """Whether the measurement lies in the interval."""
        return self.ends is not None and self.ends[0] <= self.measured <= self.ends[1]

    def to_json(self) -> dict[str, Any]:
        """The row as the contract has it, its unit, leave-one-out error and interval beside it."""
        return {
            "case": self.case,
            "measured": self.measured,
            "predicted": self.predicted,
            "error": self.error,
            "unit": self.unit,
            "loo_error": self.left_out_error,
            **({} if self.ends is None else {"interval": list(self.ends), "inside": self.inside}),
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


def with_ends(family: Sequence[Row]) -> list[Row]:
    """Rows of one family of kernels with 90 % intervals around what a fit without the row predicts.

    As wide as the logarithms of the other rows' left-out predictions over their measurements spread, with
    Student's t for the fewness of rows.

    Example: the others are off by 10 % each way, so two of them make an interval of 0.75 to 1.33 times.

    >>> rows = [Row("a", "s", 1.0, 1.1), Row("b", "s", 1.1, 1.0), Row("c", "s", 5.0, 2.0)]
    >>> [round(end, 2) for end in with_ends(rows)[2].ends]
    [1.51, 2.64]
    """
    found = []
    for at, row in enumerate(family):
        half = t.ppf(_TWO_SIDED, len(family) - 1) * spread([*family[:at], *family[at + 1 :]])
        predicted = row.measured * (1.0 + row.left_out_error)
        found.append(replace(row, ends=(float(predicted * np.exp(-half)), float(predicted * np.exp(half)))))
    return found


def ends(drawn_D: Sequence[float]) -> tuple[float, float]:
    """Of a 90 % interval, from predictions with profiles that were drawn."""
    low, high = np.percentile(drawn_D, (5, 95)).tolist()
    return low, high


def spread(family: Sequence[Row]) -> float:
    """Root mean square of the logarithms of left-out predictions over measurements.

    It is what a profile states as the uncertainty of a family with these errors.
    """
    wrong_R = np.log1p([row.left_out_error for row in family])
    return float(np.sqrt(np.mean(np.square(wrong_R))))


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Mean and largest error, and the mean leave-one-out error, as fractions."""
    errors = np.abs([row.error for row in rows])
    return {
        "mean_abs_error": float(errors.mean()),
        "max_abs_error": float(errors.max()),
        "loo_mean_abs_error": float(np.mean(np.abs([row.left_out_error for row in rows]))),
        **_coverage(rows),
    }


def _coverage(rows: Sequence[Row]) -> dict[str, float]:
    """The share of measurements inside their intervals, where there are any."""
    drawn = [row.inside for row in rows if row.ends is not None]
    return {"inside_90": sum(drawn) / len(drawn)} if drawn else {}
