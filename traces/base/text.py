"""Text on its way out: lines for people, JSON for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from traces.base.errors import MoesimError
from traces.base.errors import visible as visible


def to_json(value: Any, *, indent: int | None = None) -> str:
    r"""``value`` as JSON (RFC 8259, which has no NaN) in ASCII, which any terminal and any encoding holds.

    Raises:
        MoesimError: a number is not finite; names its place.

    >>> to_json({"name": "\x1bµ", "steps": [1, 2.5]})
    '{"name": "\\u001b\\u00b5", "steps": [1, 2.5]}'
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as fault:
        place, found = next(_not_finite(value, ()), ((), None))
        if found is None:
            raise
        rule = "came out beyond all numbers: a figure of the input is too large or too small"
        raise MoesimError(rule, field=".".join(map(str, place)), got=found) from fault


def _not_finite(value: Any, place: tuple[Any, ...]) -> Any:
    """Places of numbers that are not finite, and the numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _not_finite(each, (*place, key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _not_finite(each, (*place, index))
