"""Routing and loads recorded by others: one importer for each layout, found by name or by the content.

``docs/importers.md`` says for each what it holds, and what is lost.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from traces.base.door import is_folder, open_file
from traces.base.errors import TraceError
from traces.base.parquet import MAGIC, is_parquet
from traces.interop.count_csv import CountCsv
from traces.interop.hints import Hints
from traces.interop.logical_count import LogicalCount
from traces.interop.npy import NpyRequests
from traces.interop.npz import NpzArrays, NpzLayers, NpzRequests
from traces.interop.recording import Recording
from traces.interop.responses import Responses
from traces.interop.rows import CsvRows, JsonRows
from traces.interop.seen import seen
from traces.interop.sglang import SglangPasses, SglangStat
from traces.interop.sglang_tokens import SglangTokens
from traces.interop.table import ParquetTable
from traces.interop.trtllm import TrtllmCounts, TrtllmTokens
from traces.load_table import LoadTable
from traces.load_table_file import is_load_table, read_load_table
from traces.routing import RoutingTrace
from traces.trace_file import TraceFile

Opened = TypeVar("Opened", Recording, LoadTable, covariant=True)


class Importer(Protocol[Opened]):
    """Turns one foreign layout into a routing trace, or into a load table.

    Attributes:
        summary: the layout in one line, for ``--help`` and error messages.
    """

    summary: ClassVar[str]

    def detects(self, path: Path) -> bool:
        """Whether ``path`` looks like this layout; an error means that it does not."""
        ...

    def open(self, path: Path, hints: Hints) -> Opened:
        """Read a load table, or look at ``path`` as far as needed to know the shape of its trace.

        Raises:
            MoesimError: the file is damaged, or something must be named that it does not tell. What is
                wrong further on in a trace is raised when the pieces are read.
        """
        ...


IMPORTERS: dict[str, Importer[Recording]] = {
    "npz": NpzArrays(),
    "npz-requests": NpzRequests(),
    "npz-layers": NpzLayers(),
    "npy": NpyRequests(),
    "routed-experts": Responses(),
    "sglang-per-token": SglangTokens(),
    "trtllm-raw": TrtllmTokens(),
    "csv": CsvRows(),
    "jsonl": JsonRows(),
    "parquet": ParquetTable(),
}
"""Layouts that tell what each token chose."""

LOAD_IMPORTERS: dict[str, Importer[LoadTable]] = {
    "sglang-stat": SglangStat(),
    "sglang-per-pass": SglangPasses(),
    "logical-count": LogicalCount(),
    "count-csv": CountCsv(),
    "trtllm": TrtllmCounts(),
}
"""Layouts that tell how many tokens each expert got."""

_ALL: dict[str, Importer[Recording] | Importer[LoadTable]] = {**IMPORTERS, **LOAD_IMPORTERS}
_HEAD = 512  # bytes of a file that tell what it may be


def importer(name: str) -> Importer[Recording] | Importer[LoadTable]:
    """The importer called ``name``.

    Raises:
        TraceError: there is none; the message lists those that exist.
    """
    if name not in _ALL:
        raise TraceError(f"unknown format, known are: {', '.join(_ALL)}", field="--from", got=name)
    return _ALL[name]


def detect(path: str | Path) -> Importer[Recording] | Importer[LoadTable] | None:
    """The importer whose layout ``path`` looks like, or None; tokens come before counts."""
    return next((found for found in _ALL.values() if _detects(found, Path(path))), None)


def _detects(found: Importer[Recording] | Importer[LoadTable], path: Path) -> bool:
    """Whatever a damaged file of something else causes, it is not of this layout."""
    try:
        return found.detects(path)
    except Exception:
        return False


def check_whole(path: Path) -> None:
    """Say what is wrong with a file that can be of no layout, whatever the layout.

    Raises:
        TraceError: there is no such file, it is empty, cut off, or begins with zeros alone.
    """
    if is_folder(path):
        return
    try:
        with open_file(path, "a recording", TraceError) as file:
            head = file.read(_HEAD)
            file.seek(-min(len(head), len(MAGIC)), os.SEEK_END)
            tail = file.read()
            archive = zipfile.is_zipfile(file)
    except OSError as fault:
        raise TraceError(f"cannot be read: {fault.strerror or fault}", file=path) from fault
    if head.startswith(b"PK\x03\x04") and not archive:
        raise TraceError("is cut off: it begins as .npz and .pt files do, and lacks their end", file=path)
    if head.startswith(MAGIC) and tail != MAGIC:
        raise TraceError("is cut off: it begins as Parquet does, and lacks its end", file=path)
    if not head.strip(b"\0"):
        raise TraceError("is damaged: it begins with zeros alone", file=path)


def open_source(path: str | Path, hints: Hints | None = None) -> TraceFile | RoutingTrace | LoadTable:
    """Open whatever holds loads: a trace of ours (lazily), a load table, or a layout of an importer.

    Args:
        hints: what a foreign file does not tell.

    Raises:
        MoesimError: it is none of these, or breaks the rules of what it is.
    """
    source = Path(path)
    found = detect(source)
    if found is not None:
        opened = found.open(source, hints or Hints())
        return opened.read() if isinstance(opened, Recording) else opened
    if is_load_table(source):
        return read_load_table(source)
    if not is_folder(source) and not is_parquet(source):
        raise unknown(source, f"no trace, no load table, and of none of the layouts {', '.join(_ALL)}")
    return TraceFile(source)


def unknown(path: Path, rule: str) -> TraceError:
    """The error for a file that is ``rule``, with what it shows of itself."""
    check_whole(path)
    shows = seen(path)
    return TraceError(f"{shows}: it is {rule}" if shows else f"is {rule}", file=path)


def load_any(path: str | Path, hints: Hints | None = None) -> RoutingTrace:
    """Read a trace of ours, or of a layout that an importer knows.

    Raises:
        TraceError: it is neither, or an importer lacks something that the caller must name.
    """
    opened = open_source(path, hints)
    if isinstance(opened, LoadTable):
        raise TraceError("is a load table, counts without tokens: a routing trace is needed", file=path)
    if isinstance(opened, RoutingTrace):
        return opened
    with opened:
        return opened.read()
