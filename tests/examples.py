"""How many examples a property test tries where fewer than 100 are enough, each being slow."""

from __future__ import annotations

from hypothesis import settings

DEEPER = 10
"""So many times more under the profile ``deep``."""


def examples(number: int) -> int:
    """``number``, always the same ones, in ``make test``; in ``make test-deep`` more, and others each time.

    >>> examples(12) in (12, 120)
    True
    """
    default = settings.default
    assert default is not None  # conftest.py loads one
    return number if default.derandomize else number * DEEPER
