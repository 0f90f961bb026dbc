"""One line of what a calibration found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


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

    @classmethod
    def fitted(cls, name: str, value: float, unit: str, parameter: float, half: float) -> Self:
        """A value that is proportional, or inversely so, to a fitted parameter ± half.

        >>> Quantity.fitted("link", 2e9, "B/s", 0.5, 0.1).interval
        0.2
        """
        return cls(name, value, unit, half / parameter if half and parameter else None)
