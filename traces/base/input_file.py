"""What a user names, read: text in UTF-8, and JSON that is strict and bounded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from traces.base.door import is_folder, read_bytes
from traces.base.errors import MoesimError

MAX_JSON_BYTES = 32 << 20  # decoded, the worst such text takes about 700 MB
_TEXT_TIMES = 6  # bytes in memory for one of text: itself, and 4 for each character where one is rare


def files_in(path: Path, suffix: str) -> list[Path]:
    """The files of a folder that end in ``suffix``, by name; of anything else, itself."""
    return sorted(path.glob(f"*{suffix}")) if is_folder(path) else [path]


def require_files(path: Path, suffix: str, error: type[MoesimError]) -> list[Path]:
    """What :func:`files_in` finds, at least one file."""
    files = files_in(path, suffix)
    if not files:
        raise error(f"holds no {suffix} file", file=path)
    return files


def read_text(path: Path, what: str, error: type[MoesimError], *, most: int | None = None) -> str:
    """The text of a file in UTF-8; ``what`` was expected, for messages: ``a load table``.

    Args:
        most: bytes that it may have.
    """
    content = read_bytes(path, what, error, most=most, times=_TEXT_TIMES)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise error(f"is not UTF-8 text: byte {fault.start}", file=path) from fault


def read_json(path: Path, what: str, error: type[MoesimError]) -> dict[str, Any]:
    """The JSON object in ``path``, as :func:`parse_json` reads it."""
    content = parse_json(read_text(path, what, error, most=MAX_JSON_BYTES), what, error, file=path)
    if not isinstance(content, dict):
        raise error(f"is not {what}: must be a JSON object", file=path)
    return content


def parse_json(
    text: str,
    what: str,
    error: type[MoesimError],
    *,
    file: Path | None = None,
    show_key: Callable[[str], str] = repr,
) -> Any:
    """One JSON value; a key that stands twice, NaN and infinity are refused.

    Args:
        what: what was expected, for messages: ``a load table``.
    """

    def no_constant(name: str) -> NoReturn:
        raise error("is not a JSON number", file=file, got=name)

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, value in pairs:
            if name in content:
                raise error("the key stands twice", file=file, field=show_key(name))
            content[name] = value
        return content

    try:
        return json.loads(text, parse_constant=no_constant, object_pairs_hook=no_duplicates)
    except json.JSONDecodeError as fault:
        raise error(f"is not JSON: {fault.msg}", file=file, line=fault.lineno) from fault
    except ValueError as fault:  # an integer of thousands of digits
        raise error("is not JSON: a number is too long", file=file) from fault
    except RecursionError as fault:
        raise error(f"is not {what}: nested too deeply", file=file) from fault
