"""The text of a placement file, and the JSON in it: strict and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from placement.files.values import show_key
from placement.problem.errors import PlacementError

MAX_BYTES = 32 << 20
"""Largest file read or written; 58 layers of 65,536 slots take 23 MB."""


def read_text(source: Path) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        PlacementError: missing, unreadable, a folder or a device, too large, not UTF-8.
    """
    if source.is_dir():
        raise PlacementError("is a folder, a placement file was expected", file=source)
    try:
        # Pipes and devices may never end; only a regular file has a size to check.
        if not source.is_file():
            raise PlacementError("there is no such file", file=source)
        if source.stat().st_size > MAX_BYTES:
            raise PlacementError(f"larger than {MAX_BYTES} bytes", file=source, got=source.stat().st_size)
        return source.read_text(encoding="utf-8")
    except OSError as error:
        raise PlacementError(f"cannot be read: {error.strerror or error}", file=source) from error
    except UnicodeDecodeError as error:
        raise PlacementError(f"is not UTF-8 text: byte {error.start}", file=source) from error


def parse_json(text: str) -> Any:
    """One JSON value; a key that stands twice, NaN and infinity are refused.

    Raises:
        PlacementError: it is none.
    """

    def no_constant(name: str) -> NoReturn:
        raise PlacementError("is not a JSON number", got=name)

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, value in pairs:
            if name in content:
                raise PlacementError("the key stands twice", field=show_key(name))
            content[name] = value
        return content

    try:
        return json.loads(text, parse_constant=no_constant, object_pairs_hook=no_duplicates)
    except json.JSONDecodeError as error:
        raise PlacementError(f"is not JSON: {error.msg}", line=error.lineno) from error
    except ValueError as error:  # an integer of thousands of digits
        raise PlacementError("is not JSON: a number is too long") from error
    except RecursionError as error:
        raise PlacementError("is not a placement: nested too deeply") from error


def compact_json(value: object) -> str:
    """JSON on one line without spaces: how all files here hold a row."""
    return json.dumps(value, separators=(",", ":"))
