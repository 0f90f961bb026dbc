"""Checks of the plain values in a placement file: keys, whole numbers, experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.problem.errors import PlacementError

_INT32 = np.iinfo(np.int32)
_KINDS = {
    str: "text",
    int: "an integer",
    list: "a list",
    dict: "an object",
    bool: "a boolean",
    float: "a number",
}


def kind(value: object) -> str:
    """The JSON type of a value: shown in place of the value, which may be huge or deeply nested."""
    return "null" if value is None else _KINDS[type(value)]


def show_key(name: object) -> str:
    """A key on one line, however long it is or whatever it holds."""
    text = repr(name)
    return text if len(text) <= 60 else f"{text[:59]}…"


def check_keys(content: object, known: Mapping[str, type], at: str = "") -> dict[str, Any]:
    """``content`` as an object with exactly these keys, each of its type.

    Args:
        at: where it stands, for messages.

    Raises:
        PlacementError: it is no object, or a key is unknown, missing or of another type.
    """
    if type(content) is not dict:
        raise PlacementError(f"must be an object, not {kind(content)}", field=at)
    inside = f"{at}." if at else ""
    for name in content:
        if name not in known:
            raise PlacementError(f"unknown key; known: {', '.join(known)}", field=f"{inside}{show_key(name)}")
    for name, wanted in known.items():
        if name not in content:
            raise PlacementError("is missing", field=f"{inside}{name}")
        if type(content[name]) is not wanted:
            rule = f"must be {_KINDS[wanted]}, not {kind(content[name])}"
            raise PlacementError(rule, field=f"{inside}{name}")
    return content


def integer_row(row: list[Any], field: str) -> NDArray[Any]:
    """int32 [slots] from a list.

    Raises:
        PlacementError: an entry is something else, or out of range.
    """
    for position, value in enumerate(row):
        if type(value) is not int:  # a boolean or 1.0 would convert silently
            raise PlacementError(f"must be an integer, not {kind(value)}", field=f"{field}[{position}]")
        if not _INT32.min <= value <= _INT32.max:
            raise PlacementError("is out of range", field=f"{field}[{position}]", got=value)
    return np.array(row, dtype=np.int32)


def integer_rows(rows: Iterable[tuple[str, object]]) -> NDArray[Any]:
    """int32 [rows, slots] from equally long lists, each with where it stands.

    Raises:
        PlacementError: a row is no list of integers, or not as long as the first.
    """
    arrays: list[NDArray[Any]] = []
    for field, row in rows:
        if type(row) is not list:
            raise PlacementError(f"must be a list of slots, not {kind(row)}", field=field)
        if arrays and len(row) != len(arrays[0]):
            raise PlacementError(f"must have {len(arrays[0])} slots as the first", field=field, got=len(row))
        arrays.append(integer_row(row, field))
    return np.array(arrays, dtype=np.int32)
