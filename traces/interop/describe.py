"""Statistics of whatever holds expert loads, by its path."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from traces.base.errors import TraceError
from traces.interop import open_source
from traces.interop.hints import Hints
from traces.load_table import LoadTable
from traces.statistics import TableStatistics, TraceStatistics, table_statistics, trace_statistics
from traces.trace_file import TraceFile

if TYPE_CHECKING:
    from traces.full_statistics import FullStatistics


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
    with source if isinstance(source, TraceFile) else nullcontext():
        return trace_statistics(source, ep=ep)


def describe_fully(path: str | Path, *, ep: int | None = None, hints: Hints | None = None) -> FullStatistics:
    """What ``moesim trace info --full`` tells of a trace; as :func:`describe`.

    Raises:
        MoesimError: also where the file holds loads and no tokens.
    """
    from traces.full_statistics import full_statistics  # here: it loads scipy

    source = open_source(path, hints)
    if isinstance(source, LoadTable):
        rule = "holds loads and no tokens, so there is no more to tell of it"
        raise TraceError(rule, file=path, field="--full")
    with source if isinstance(source, TraceFile) else nullcontext():
        return full_statistics(source, ep=ep)
