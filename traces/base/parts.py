"""Temporary files and folders: gone after their block, and after a crash with the next that is made there.

A process holds a lock on each of its own as long as it lives, so that nobody else's is taken for left over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_OURS = re.compile(r"\..+\.moesim-\w{8}\.part")


@contextlib.contextmanager
def part_of(name: str, around: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a new file, or an empty folder, for what shall be ``name``; it is removed unless it was moved.

    Both are open to this user alone.

    Raises:
        OSError: the folder ``around`` is missing or read-only, or the disk is full.
    """
    clear(around)
    path, handle = _held(name, around, folder)
    try:
        yield path
    finally:
        _remove(path)
        os.close(handle)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder where the system keeps what is temporary."""
    with part_of("scratch", Path(tempfile.gettempdir()), folder=True) as path:
        yield path


def clear(around: Path) -> None:
    """Remove the parts that processes left which ended before they could."""
    found: list[Path] = []
    with contextlib.suppress(OSError):  # a folder may be written that may not be listed
        found = [entry for entry in around.iterdir() if _OURS.fullmatch(entry.name)]
    for entry in found:
        # It may be another user's, or be gone by now.
        with contextlib.suppress(OSError), _opened(entry) as handle:
            # Refused where its process lives, or where the file system knows no locks.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(entry)


def _held(name: str, around: Path, folder: bool) -> tuple[Path, int]:
    """A part and the handle that locks it. One that a cleaning process met before the lock is made anew."""
    prefix, suffix = f".{name}.moesim-", ".part"
    while True:
        if folder:
            path = Path(tempfile.mkdtemp(suffix, prefix, around))
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
        else:
            handle, text = tempfile.mkstemp(suffix, prefix, around)
            path = Path(text)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        except OSError:  # without locks nobody removes it either
            return path, handle
        if path.exists():
            return path, handle
        os.close(handle)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    # Not through a link, and without waiting for the other end of a pipe.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield handle
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
