"""Writing whole files or none, and the ``format`` key that every file of ours carries."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from traces.errors import MoesimError, OutputError


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` if the block succeeds.

    A reader therefore sees the old file or the new one, never a part. Whatever ends the block
    early, Ctrl-C included, removes the temporary file.

    Raises:
        OutputError: the folder is missing or read-only, or the disk is full.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError("is a folder, a file was expected", file=target)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=target) from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        # mkstemp makes files private; give the result the permissions an ordinary open() would.
        partial.chmod(0o666 & ~_umask())
        partial.replace(target)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=target) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_format(
    found: object, thing: str, major: int, *, file: str | Path, error: type[MoesimError]
) -> None:
    """Refuse a ``format`` value other than ``moesim.<thing>/<major>``.

    >>> check_format("moesim.trace/1", "trace", 1, file="x.parquet", error=MoesimError)
    """
    expected = f"moesim.{thing}/{major}"
    if found == expected:
        return
    if isinstance(found, str) and found.startswith(f"moesim.{thing}/"):
        raise error(f"needs a newer moesim: this one reads {expected}", file=file, field="format", got=found)
    raise error(f"is not a moesim {thing}: expected format {expected}", file=file, field="format", got=found)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
