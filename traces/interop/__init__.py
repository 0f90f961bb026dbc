"""Routing recorded by others: one importer for each layout, found by name or by looking at the file."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

from traces.errors import TraceError
from traces.interop.npz import NpzArrays, NpzRequests
from traces.interop.table import ParquetTable
from traces.load_table import LoadTable
from traces.load_table_file import is_load_table, read_load_table
from traces.routing import RoutingTrace, read_trace
from traces.trace_file import TraceFile


class Importer(Protocol):
    """Turns one foreign layout into a routing trace.

    Attributes:
        summary: the layout in one line, for ``--help`` and error messages.
    """

    summary: ClassVar[str]

    def detects(self, path: Path) -> bool:
        """Whether ``path`` looks like this layout; never raises for a damaged file."""
        ...

    def convert(
        self,
        path: Path,
        *,
        model: str,
        experts: int | None,
        layers: tuple[int, ...] | None,
        origin: str,
        licence: str,
    ) -> RoutingTrace:
        """Read and check the whole of ``path``.

        Args:
            experts: E, which these layouts do not tell.
            layers: true indices of the MoE layers; None = the layout's own, counted from 0.

        Raises:
            TraceError: E is missing, or the file is damaged or breaks a rule of the trace format.
        """
        ...


IMPORTERS: dict[str, Importer] = {
    "npz": NpzArrays(),
    "npz-requests": NpzRequests(),
    "parquet": ParquetTable(),
}


def importer(name: str) -> Importer:
    """The importer called ``name``.

    Raises:
        TraceError: there is none; the message lists those that exist.
    """
    if name not in IMPORTERS:
        raise TraceError(f"unknown format, known are: {', '.join(IMPORTERS)}", field="from", got=name)
    return IMPORTERS[name]


def detect(path: str | Path) -> Importer | None:
    """The importer whose layout ``path`` looks like, or None."""
    return next((found for found in IMPORTERS.values() if found.detects(Path(path))), None)


def open_source(path: str | Path) -> TraceFile | RoutingTrace | LoadTable:
    """Open whatever holds loads: a trace of ours (lazily), a load table, or a layout of an importer.

    Raises:
        MoesimError: it is none of these, or breaks the rules of what it is.
    """
    source = Path(path)
    if is_load_table(source):
        return read_load_table(source)
    return TraceFile(source) if detect(source) is None else load_any(source)


def load_any(
    path: str | Path,
    *,
    model: str = "",
    experts: int | None = None,
    layers: tuple[int, ...] | None = None,
    origin: str = "",
    licence: str = "",
) -> RoutingTrace:
    """Read a trace of ours, or of a layout that an importer knows.

    Raises:
        TraceError: it is neither, or an importer lacks something that the caller must name.
    """
    if is_load_table(Path(path)):
        raise TraceError("is a load table, counts without tokens: a routing trace is needed", file=path)
    found = detect(path)
    if found is None:
        return read_trace(path)
    return found.convert(
        Path(path), model=model, experts=experts, layers=layers, origin=origin, licence=licence
    )
