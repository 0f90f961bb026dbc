"""How far rounding alone may take a float from what it should be, whatever processor adds it up.

Libraries add in blocks, with fused multiply-adds, in registers of any width: each order rounds otherwise. A
tolerance that was read off one machine fails on the next; one that follows from the length of the sums, the
size of their values and the dtype does not. Below one in a million, tests take theirs from here
(``tests/test_tolerance.py`` looks); above it rounding does not matter in float64, and a tolerance says
something else: what a fit, a random draw or a printed figure allows.
"""

from __future__ import annotations

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""From 1 to the next number; rounding to the nearest is off by half of it."""


def rounding(times: float, dtype: str = "float64") -> float:
    """Relative error of a value that was rounded so often: of a sum of that many products, all of one sign.

    A computed sum Σ ab of n products is off by at most n ε/2 Σ |ab|, in whichever order it is added (Higham,
    Accuracy and Stability of Numerical Algorithms, equation 3.5); the whole ε is for two such sums that are
    compared. Where signs are mixed, multiply by Σ |ab| instead of the sum. Where they are random and the sum
    long, errors grow as those of a random walk (Higham and Mary, 2019): √n ε times √Σ (ab)².

    >>> rounding(4) == 4 * 2.0**-52
    True
    """
    return times * EPSILON[dtype]
