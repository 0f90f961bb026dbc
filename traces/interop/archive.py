"""Zip archives, which ``.npz`` and ``.pt`` files are."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from traces.base.door import open_file
from traces.base.errors import MoesimError

FAULTS = (
    *(OSError, ValueError, KeyError, EOFError, MemoryError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    RuntimeError,  # encrypted; and as NotImplementedError of a version to come
)
"""What is raised for a damaged archive."""


@contextmanager
def open_archive(path: Path, what: str, error: type[MoesimError]) -> Iterator[zipfile.ZipFile]:
    """The archive in a file.

    Raises:
        MoesimError: of class ``error``: it is no file to read.
        FAULTS: it is damaged, or no archive.
    """
    with open_file(path, what, error) as file, zipfile.ZipFile(file) as archive:
        yield archive
