"""The lines of what a calibration found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moesim.calibration.fitting import Fit


@dataclass(frozen=True)
class Quantity:
    """A value and how sure it is.

    Attributes:
        unit: ``B/s``, ``FLOP/s``, ``s``, or nothing for a number.
        interval: half of the 95 % confidence interval, relative to the value; None for what was not fitted,
            or what a bound holds.
    """

    name: str
    value: float
    unit: str = ""
    interval: float | None = None


def fitted(named: Iterable[tuple[str, float, str]], found: Fit) -> list[Quantity]:
    """For each fitted parameter a value, with name and unit, that is proportional, or inversely so, to it.

    >>> import numpy as np
    >>> found = Fit(np.array([0.5]), np.array([0.1]), np.ones(1), np.ones(1))
    >>> [line] = fitted([("link", 2e9, "B/s")], found)
    >>> line.interval
    0.2
    """
    lines = zip(named, found.parameters_P.tolist(), found.interval_P.tolist(), strict=True)
    return [
        Quantity(*line, half / parameter if half and parameter else None) for line, parameter, half in lines
    ]
