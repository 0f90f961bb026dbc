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
    assert settings.default is not None
    return number if settings.default.derandomize else number * DEEPER
