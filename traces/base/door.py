"""The one door to files that a user names: regular files only, of a size that memory holds.

A pipe or a device may wait or go on for ever, and has no size to check. Every opener of the program comes in
here; ``tests/test_door.py`` looks for those that do not.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

from traces.base.errors import MoesimError
from traces.base.memory import require_memory

_KINDS = (
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "character device"),
    (stat.S_ISBLK, "block device"),
)


def open_file(
    path: str | Path,
    what: str,
    error: type[MoesimError],
    *,
    most: int | None = None,
    times: float = 0,
    empty: bool = False,
) -> io.BufferedReader:
    """A regular file with something in it, opened to read its bytes.

    Args:
        what: what was expected, for messages: ``a load table``.
        most: bytes that it may have.
        times: bytes of memory that reading it takes for each of its own, as measured.
        empty: whether it may be empty.

    Raises:
        MoesimError: of class ``error``: there is none, it is a folder, pipe, device or socket, cannot be
            read, is empty, too large, or does not fit into memory.
    """
    require_file(path, what, error, most=most, times=times, empty=empty)
    try:
        # Not waiting: it may have become a pipe since.
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123, SIM115
    except OSError as fault:
        raise error(f"cannot be read: {fault.strerror or fault}", file=path) from fault
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise error("is not a regular file", file=path)
    return file


def require_file(
    path: str | Path,
    what: str,
    error: type[MoesimError],
    *,
    most: int | None = None,
    times: float = 0,
    empty: bool = False,
) -> int:
    """The size in bytes of ``path``; as :func:`open_file`, for libraries that open a path themselves."""
    try:
        found = Path(path).stat()
    except FileNotFoundError as fault:
        raise error("there is no such file", file=path) from fault
    except OSError as fault:
        raise error(f"cannot be read: {fault.strerror or fault}", file=path) from fault
    except ValueError as fault:  # a null byte or a lone surrogate
        raise error("is not a file name", got=str(path)) from fault
    if stat.S_ISDIR(found.st_mode):
        raise error(f"is a folder, {what} was expected", file=path)
    kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), None)
    if kind is not None:
        unnamed = os.path.realpath(path).startswith("/proc/")  # of a shell: <(command), /dev/stdin
        way_out = ": save its content to a file first" if kind == "named pipe" and unnamed else ""
        raise error(f"is not a regular file ({'pipe' if way_out else kind}){way_out}", file=path)
    if found.st_size == 0 and not empty:
        raise error("is empty", file=path)
    if most is not None and found.st_size > most:
        raise error(f"is larger than {_size(most)}, too large for {what}", file=path, got=found.st_size)
    require_memory(int(times * found.st_size), f"{what} of {found.st_size} bytes", error=error, file=path)
    return found.st_size


def read_bytes(
    path: str | Path,
    what: str,
    error: type[MoesimError],
    *,
    most: int | None = None,
    times: float = 1,
    empty: bool = False,
) -> bytes:
    """The content of a file; as :func:`open_file`."""
    try:
        with open_file(path, what, error, most=most, times=times, empty=empty) as file:
            return file.read()
    except (OSError, MemoryError) as fault:
        raise error(f"cannot be read: {getattr(fault, 'strerror', None) or fault!r}", file=path) from fault


def first_bytes(path: Path, most: int) -> bytes:
    """The first ``most`` bytes of a regular file; none where there is no such file, or it cannot be read."""
    try:
        with open_file(path, "a file", MoesimError) as file:
            return file.read(most)
    except (OSError, MoesimError):
        return b""


def is_regular(path: Path) -> bool:
    """Whether it is a regular file; no name makes this fail."""
    return _mode(path, stat.S_ISREG)


def is_folder(path: Path) -> bool:
    """Whether it is a folder; no name makes this fail."""
    return _mode(path, stat.S_ISDIR)


def names_in(folder: Path, error: type[MoesimError]) -> list[str]:
    """What is in a folder, sorted.

    Raises:
        MoesimError: of class ``error``: it cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as fault:
        raise error(f"cannot be read: {fault.strerror or fault}", file=folder) from fault


def _mode(path: Path, is_kind: Callable[[int], bool]) -> bool:
    try:
        return is_kind(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _size(size: int) -> str:
    """
    >>> _size(5), _size(3 << 10), _size(32 << 20)
    ('5 bytes', '3 KiB', '32 MiB')
    """
    if size >= 1 << 20:
        return f"{size / (1 << 20):.4g} MiB"
    return f"{size >> 10} KiB" if size >= 1 << 10 else f"{size} bytes"
