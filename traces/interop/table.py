"""Routing in Parquet with our columns but without our metadata, as pandas or polars write it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from traces.base import parquet
from traces.base.errors import TraceError
from traces.interop.hints import Hints
from traces.interop.recording import Recording
from traces.meta import TraceMeta
from traces.routing import RoutingTrace
from traces.trace_file import TraceFile

_EXPERTS_COLUMN = re.compile(r"experts_(0|[1-9][0-9]{0,8})")


class ParquetTable:
    """Columns as in ``docs/trace-format.md``; K is the length of the first row's list."""

    summary: ClassVar[str] = "Parquet by pandas or polars: request, position, experts_<layer>, …"

    def detects(self, path: Path) -> bool:
        try:
            file = parquet.open_parquet(path, TraceError)
        except TraceError:
            return False
        with file:
            try:
                foreign = parquet.read_metadata(file, path, TraceError) is None
            except TraceError:
                return False
            return foreign and bool(_layers(file.schema_arrow.names))

    def open(self, path: Path, hints: Hints) -> Recording:
        with parquet.open_parquet(path, TraceError) as file:
            names = file.schema_arrow.names
            chosen = hints.layers or _layers(names)
            if not chosen:
                raise TraceError("lacks columns experts_<layer>", file=path)
            top_k = _first_length(file, f"experts_{chosen[0]}", path)
            column = f"candidates_{chosen[0]}"
            candidates = _first_length(file, column, path) if column in names else 0
        meta = hints.meta(top_k, chosen, file=path, candidates=candidates)
        with TraceFile(path, meta) as trace:
            categories = trace.categories
        return Recording(path, meta, _pieces(path, meta), categories)


def _pieces(path: Path, meta: TraceMeta) -> Iterator[RoutingTrace]:
    with TraceFile(path, meta) as trace:
        yield from trace.windows()


def _layers(names: list[str]) -> tuple[int, ...]:
    found = (_EXPERTS_COLUMN.fullmatch(name) for name in names)
    return tuple(sorted(int(match[1]) for match in found if match))


def _first_length(file: Any, column: str, path: Path) -> int:
    with parquet.reading(path, TraceError):
        batch = next(file.iter_batches(1, columns=[column]), None)
        if batch is None or batch.num_rows == 0 or column not in batch.schema.names:
            raise TraceError(f"lacks column {column}, or has no tokens", file=path)
        value = batch.column(column)[0]
        if not isinstance(value, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
            raise TraceError("must be a column of lists", file=path, field=column, got=value.type)
        return len(value) if value.is_valid else 0
