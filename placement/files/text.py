"""The text of a placement file, and the JSON in it: strict and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from placement.files.values import show_key
from placement.problem.errors import PlacementError
from traces.base import input_file

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
    return input_file.parse_json(text, "a placement", PlacementError, show_key=show_key)


def compact_json(value: object) -> str:
    """JSON on one line without spaces: how all files here hold a row."""
    return json.dumps(value, separators=(",", ":"))
