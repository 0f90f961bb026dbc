"""Opening what a user names: regular files only, and JSON that is strict and bounded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from traces.base.errors import MoesimError

MAX_JSON_BYTES = 32 << 20  # decoded, the worst such text takes about 700 MB


def require_file(path: Path, what: str, error: type[MoesimError]) -> int:
    """The size in bytes of ``path``, which must be a regular file with something in it.

    A pipe or device is refused: it has no size to check, and may never end.
    """
    try:
        if path.is_dir():
            raise error(f"is a folder, {what} was expected", file=path)
        if not path.is_file():
            raise error("is not a file" if path.exists() else "there is no such file", file=path)
        size = path.stat().st_size
    except (OSError, ValueError) as fault:  # ValueError: a null byte in the name
        raise error(f"cannot be read: {fault}", file=path) from fault
    if size == 0:
        raise error("is empty", file=path)
    return size


def first_bytes(path: Path, most: int) -> bytes:
    """The first ``most`` bytes of a regular file; none where there is no such file, or it cannot be read."""
    try:
        if not path.is_file():  # a pipe would block
            return b""
        with path.open("rb") as file:
            return file.read(most)
    except OSError:
        return b""


def files_in(path: Path, suffix: str) -> list[Path]:
    """The files of a folder that end in ``suffix``, by name; of anything else, itself."""
    return sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]


def require_files(path: Path, suffix: str, error: type[MoesimError]) -> list[Path]:
    """What :func:`files_in` finds, at least one file."""
    files = files_in(path, suffix)
    if not files:
        raise error(f"holds no {suffix} file", file=path)
    return files


def read_text(path: Path, what: str, error: type[MoesimError]) -> str:
    """The text of a file in UTF-8; ``what`` was expected, for messages: ``a load table``."""
    require_file(path, what, error)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as fault:
        raise error(f"cannot be read: {fault.strerror or fault}", file=path) from fault
    except UnicodeDecodeError as fault:
        raise error(f"is not UTF-8 text: byte {fault.start}", file=path) from fault


def read_json(path: Path, what: str, error: type[MoesimError]) -> dict[str, Any]:
    """The JSON object in ``path``, as :func:`parse_json` reads it."""
    size = require_file(path, what, error)
    if size > MAX_JSON_BYTES:
        raise error(f"must be at most {MAX_JSON_BYTES} bytes of JSON", file=path, got=f"{size} bytes")
    content = parse_json(read_text(path, what, error), what, error, file=path)
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
