"""Statistics of whatever holds expert loads, by its path."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from traces.interop import open_source
from traces.interop.hints import Hints
from traces.load_table import LoadTable
from traces.statistics import TableStatistics, TraceStatistics, table_statistics, trace_statistics
from traces.trace_file import TraceFile


def describe(
    path: str | Path, *, ep: int | None = None, hints: Hints | None = None
) -> TraceStatistics | TableStatistics:
    """What ``moesim trace info`` tells of a file; a trace of ours is read in windows, never whole.

    Args:
        ep: G, to report the loads of so many GPUs; must divide E.
        hints: what a file of another system does not tell.

    Raises:
        MoesimError: the file holds no loads, or breaks the rules of what it is.
    """
    source = open_source(path, hints)
    if isinstance(source, LoadTable):
        return table_statistics(source, ep=ep)
    if not isinstance(source, TraceFile):
        return trace_statistics(source, ep=ep)
    with closing(source):
        return trace_statistics(source, ep=ep)
