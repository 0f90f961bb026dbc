"""Where results are written: a file or a folder that may be written, and whole folders or none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moesim.errors import OutputError
from traces.base.door import is_folder
from traces.base.files import check_is_file

# One of these stands in every folder that a run or a what-if wrote or has begun to write.
_OURS = ("result.json", "whatif.json", "points", "plan.json", "execution.json", "validation.json")


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not or should not be written, before anything is simulated; makes nothing.

    Raises:
        OutputError: a file is in the way, there is no permission to write, or the folder holds other
            things than a run.
    """
    nearest = folder
    try:
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise OutputError("is not a folder", file=nearest)
        if folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in _OURS):
            raise OutputError(
                "is not empty and holds no run of ours; name a new folder, so that nothing is overwritten",
                file=folder,
            )
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=folder) from error
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError("cannot be written: Permission denied", file=nearest)


def check_file(out: Path, *, reads: Iterable[Path | str | None] = ()) -> None:
    """Refuse a file that could not or should not be written, before the work that fills it.

    Args:
        reads: what the command reads, of which ``out`` must be none; entries may be missing files.

    Raises:
        OutputError: it is a folder, a device or one of ``reads``; its folder is missing or closed to us.
    """
    check_is_file(out)
    if not is_folder(out.parent):
        raise OutputError("there is no such folder", file=out.parent)
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise OutputError("cannot be written: Permission denied", file=out)
    if out.exists() and any(each is not None and _is_file(each, out) for each in reads):
        raise OutputError("is what this command reads; name another file to write", file=out)


def _is_file(path: Path | str, other: Path) -> bool:
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):  # a preset's name, or nothing that is there
        return False


def to_json(value: dict[str, Any]) -> str:
    """One JSON object, a line for each entry of its upper levels."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; if the block succeeds, move its files into ``folder``.

    The empty one is inside ``folder`` where that exists, for it may be a file system of its own.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        around = folder if folder.is_dir() else folder.parent
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=around))
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=folder) from error
    try:
        yield part
        folder.mkdir(exist_ok=True)
        for file in sorted(part.iterdir()):
            if file.is_dir():  # a folder does not replace another that is not empty
                shutil.rmtree(folder / file.name, ignore_errors=True)
            file.replace(folder / file.name)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
