"""Writing whole files or none, and the ``format`` key that every file of ours carries."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from traces.base.errors import MoesimError, OutputError


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` if the block succeeds.

    A reader therefore sees the old file or the new one, never a part. Whatever ends the block
    early, Ctrl-C included, removes the temporary file. A link stays: the file behind it is replaced.

    Raises:
        OutputError: the folder is missing or read-only, the disk is full, or there is something else than a
            file, a device say.
    """
    target = Path(path)
    check_is_file(target)
    behind = Path(os.path.realpath(target))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{behind.name}.", suffix=".part", dir=behind.parent)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=target) from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        # mkstemp makes files private; give the result the permissions an ordinary open() would.
        partial.chmod(0o666 & ~_umask())
        partial.replace(behind)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=target) from error
    finally:
        partial.unlink(missing_ok=True)


def check_is_file(target: Path) -> None:
    """Refuse what is there already and is no file: a rename would put a file in the place of a device.

    Raises:
        OutputError: it is a folder, a device or a pipe.
    """
    try:
        if target.exists() and not target.is_file():
            thing = "a folder" if target.is_dir() else "a device or a pipe"
            raise OutputError(f"is {thing}, a file was expected", file=target)
    except OSError as error:  # such a name cannot be, say
        raise OutputError(f"cannot be written: {error.strerror or error}", file=target) from error


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all.

    Bytes of a file's name that are none become escapes, which JSON reads back as they were.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_format(
    found: object,
    thing: str,
    major: int,
    *,
    file: str | Path,
    error: type[MoesimError],
    oldest: int | None = None,
) -> None:
    """Refuse a ``format`` value other than ``moesim.<thing>/<major>``, or one from ``oldest`` to ``major``.

    >>> check_format("moesim.trace/1", "trace", 1, file="x.parquet", error=MoesimError)
    """
    expected = f"moesim.{thing}/{major}"
    if found in [f"moesim.{thing}/{known}" for known in range(oldest or major, major + 1)]:
        return
    if isinstance(found, str) and found.startswith(f"moesim.{thing}/"):
        raise error(f"needs a newer moesim: this one reads {expected}", file=file, field="format", got=found)
    raise error(f"is not a moesim {thing}: expected format {expected}", file=file, field="format", got=found)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
