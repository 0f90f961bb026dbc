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
    return input_file.read_text(source, "a placement file", PlacementError, most=MAX_BYTES)


def parse_json(text: str) -> Any:
    """One JSON value; a key that stands twice, NaN and infinity are refused.

    Raises:
        PlacementError: it is none.
    """
    return input_file.parse_json(text, "a placement", PlacementError, show_key=show_key)


def compact_json(value: object) -> str:
    """JSON on one line without spaces: how all files here hold a row."""
    return json.dumps(value, separators=(",", ":"))
