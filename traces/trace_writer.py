"""Writing a routing trace in pieces, so that a recording or conversion never holds all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from traces.base import parquet
from traces.base.errors import TraceError
from traces.base.files import whole_file
from traces.meta import FORMAT_MAJOR, FORMAT_THING, TraceMeta
from traces.routing import WINDOW_TOKENS, RoutingTrace, join
from traces.trace_columns import get_layer

_TOKEN_COLUMNS = ("request", "position", "step", "source_rank")
_LAYER_COLUMNS = {
    "ids_TLK": "experts",
    "weights_TLK": "weights",
    "candidate_ids_TLC": "candidates",
    "candidate_scores_TLC": "scores",
}


@contextlib.contextmanager
def trace_writer(
    path: str | Path, meta: TraceMeta, *, categories: tuple[str, ...] = ()
) -> Iterator[TraceWriter]:
    """Yield a :class:`TraceWriter`; the file appears under ``path`` when the block ends without error.

    Raises:
        TraceError: nothing was appended, or a piece breaks a rule of the format.
        OutputError: the file cannot be written.
    """
    with whole_file(path) as partial:
        writer = TraceWriter(partial, meta, categories)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


class TraceWriter:
    """Collects pieces into row groups of 16,384 tokens: how they were cut does not change the file."""

    def __init__(self, path: Path, meta: TraceMeta, categories: tuple[str, ...]) -> None:
        self._path, self._meta, self._categories = path, meta, categories
        self._waiting: list[RoutingTrace] = []
        self._after = (-1, -1)
        self._out: pa.OSFile | None = None
        self._parquet: pq.ParquetWriter | None = None
        self.tokens = 0

    def append(self, piece: RoutingTrace) -> None:
        """Check ``piece`` and write it after the tokens before it.

        Raises:
            TraceError: it breaks a rule, or has other columns or metadata than the first piece.
        """
        if (piece.meta, piece.categories) != (self._meta, self._categories):
            raise TraceError("a piece must have the metadata and categories of its trace")
        self._after = piece.validate(first_token=self.tokens, after=self._after)
        self.tokens += piece.tokens
        self._waiting.append(piece)
        waiting = sum(part.tokens for part in self._waiting)
        if waiting >= WINDOW_TOKENS:
            whole = self._take(waiting)
            full = waiting - waiting % WINDOW_TOKENS
            for window in whole.select_tokens(0, full).windows(WINDOW_TOKENS):
                self._write(window)
            if full < waiting:
                self._waiting = [whole.select_tokens(full, waiting)]

    def finish(self) -> None:
        """Write what still waits."""
        if self.tokens == 0:
            raise TraceError("has no tokens")
        if self._waiting:
            self._write(self._take(sum(part.tokens for part in self._waiting)))

    def close(self) -> None:
        """Release the file; without :meth:`finish` before it, it is not a whole trace."""
        if self._parquet is not None:
            self._parquet.close()
        if self._out is not None:
            self._out.close()

    def _take(self, waiting: int) -> RoutingTrace:
        parts, self._waiting = self._waiting, []
        return parts[0] if len(parts) == 1 else join(parts, waiting)

    def _write(self, window: RoutingTrace) -> None:
        table = _table(window)
        if self._parquet is None:
            self._out = parquet.to_write(self._path)
            self._parquet = _open(self._out, table.schema)
        if table.schema != self._parquet.schema:
            raise TraceError("the parts of a trace must have the same columns")
        self._parquet.write_table(table, row_group_size=WINDOW_TOKENS)


def _table(trace: RoutingTrace) -> pa.Table:
    arrays = dict(trace.present())
    columns = {name: pa.array(arrays[f"{name}_T"]) for name in _TOKEN_COLUMNS if f"{name}_T" in arrays}
    if trace.category_T is not None:
        codes = pa.array(trace.category_T, mask=trace.category_T < 0)
        columns["category"] = pa.DictionaryArray.from_arrays(codes, pa.array(trace.categories, pa.string()))
    for name, kind in _LAYER_COLUMNS.items():
        if name in arrays:
            for index, layer in enumerate(trace.meta.layers):
                columns[f"{kind}_{layer}"] = parquet.to_lists(get_layer(arrays[name], index))
    metadata = {
        "format": f"moesim.{FORMAT_THING}/{FORMAT_MAJOR}",
        **trace.meta.to_dict(),
        "categories": list(trace.categories),
    }
    # Only a category may be null; that nothing else is also makes encoding faster.
    fields = [pa.field(name, column.type, nullable=name == "category") for name, column in columns.items()]
    schema = parquet.with_metadata(pa.schema(fields), metadata)
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


def _open(out: pa.OSFile, schema: pa.Schema) -> pq.ParquetWriter:
    """Encodings that were the fastest of those tried; the smallest files would be a fifth smaller.

    Measured on gpt-oss-20b's routing (6 × 70,558 tokens, 24 layers, top-4), pyarrow 26, one core: ids as
    dictionary 46 M/s and 0.59 bytes each; float16 weights plain 48 M/s and 1.23 bytes (as dictionary
    26 M/s, 1.11); statistics of weights alone cost a third of the speed and serve nobody.
    """
    number_columns = [name for name in schema.names if not pa.types.is_nested(schema.field(name).type)]
    lists = [f"{name}.list.element" for name in schema.names if name not in number_columns]
    ids = [name for name in lists if name.startswith(("experts_", "candidates_"))]
    return pq.ParquetWriter(
        out,
        schema,
        compression="zstd",
        use_dictionary=[name for name in number_columns if name != "position"] + ids,
        write_statistics=[name for name in number_columns if name != "category"],
        write_page_checksum=True,
    )


def write_trace(trace: RoutingTrace, path: str | Path) -> None:
    """Check ``trace`` and write it, whole or not at all; equal content gives equal bytes.

    Raises:
        TraceError: the trace breaks a rule of the format.
        OutputError: the file cannot be written.
    """
    with trace_writer(path, trace.meta, categories=trace.categories) as writer:
        writer.append(trace)
