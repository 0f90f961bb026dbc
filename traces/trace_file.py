"""A routing trace on disk, opened without reading it: windows and layers are read when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.base import parquet
from traces.base.arrays import Ints
from traces.base.errors import TraceError
from traces.base.files import check_format
from traces.checks import Place, check_order
from traces.meta import FORMAT_MAJOR, FORMAT_THING, TraceMeta
from traces.routing import WINDOW_TOKENS, RoutingTrace, check_range, join
from traces.trace_columns import Columns

_NUMBER_COLUMNS = ("step", "source_rank")
_WINDOW_NUMBERS = 1 << 26  # ids of a window; fewer tokens where a foreign file has huge rows


class TraceFile:
    """A trace in Parquet; only its footer is read on opening.

    ::

        with TraceFile("trace.parquet") as file:
            window = file.read(slice(10_000, 20_000), layers=(3, 4))   # reads no other layers
            for window in file.windows():                              # bounded memory
                ...

    Args:
        path: a file in the format of ``docs/trace-format.md``.
        meta: for a file by another tool, with the right columns but without our metadata.

    Raises:
        TraceError: not a trace, an unknown format version, or columns that the metadata promises
            are missing.
    """

    def __init__(self, path: str | Path, meta: TraceMeta | None = None) -> None:
        self.path = Path(path)
        self._parquet = parquet.open_parquet(self.path, TraceError)
        try:
            found = parquet.read_metadata(self._parquet, self.path, TraceError)
            if found is None and meta is None:
                rule = "is not a routing trace: its schema lacks the metadata key moesim; convert it first"
                raise TraceError(rule, file=self.path)
            if found is not None:
                check_format(
                    found.get("format"), FORMAT_THING, FORMAT_MAJOR, file=self.path, error=TraceError
                )
                meta = TraceMeta.from_dict(found, file=self.path)
            assert meta is not None  # one of the two branches above gave it
            self.meta = meta
            self._named_categories = None if found is None else _category_names(found, self.path)
            self._check_columns()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._parquet.close(force=True)

    @property
    def tokens(self) -> int:
        """T of the whole file."""
        return int(self._parquet.metadata.num_rows)

    @property
    def has_weights(self) -> bool:
        """Whether gate weights are stored."""
        return f"weights_{self.meta.layers[0]}" in self._names

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Names that the category codes index; from another tool's file, in order of appearance."""
        if self._named_categories is not None or "category" not in self._names:
            return self._named_categories or ()
        names: dict[str, None] = {}
        for _, batch in self._batches(0, self.tokens, ["category"]):
            found = Columns(batch, self.meta, self.path).category_names()
            names.update(dict.fromkeys(name for name in found if name is not None))
        return tuple(names)

    @cached_property
    def request_offsets(self) -> Ints:
        """int64 [R+1], as :attr:`RoutingTrace.request_offsets`; reads two columns and no routing."""
        after, last, starts = (-1, -1), -1, []
        for start, batch in self._batches(0, self.tokens, ["request", "position"]):
            found = Columns(batch, self.meta, self.path, start)
            request_T, position_T = found.numbers("request"), found.numbers("position")
            after = check_order(request_T, position_T, Place(self.path, start), after)
            starts.append(start + np.flatnonzero(np.diff(request_T, prepend=np.int32(last))))
            last = after[0]
        return np.concatenate([*starts, [self.tokens]]).astype(np.int64)

    @property
    def requests(self) -> int:
        """R, the number of requests."""
        return len(self.request_offsets) - 1

    def read(self, tokens: slice | None = None, layers: Iterable[int] | None = None) -> RoutingTrace:
        """The tokens of a range, in some layers, checked; nothing else is read.

        Args:
            tokens: a slice without step; None = all.
            layers: true layer indices; None = all.

        Raises:
            TraceError: the range or a layer is not in the file, the part read breaks a rule of the
                format, or it does not fit into memory.
        """
        start, stop = self._range(tokens)
        return join(self._windows(start, stop, layers), stop - start, file=self.path)

    def read_requests(self, start: int, stop: int, layers: Iterable[int] | None = None) -> RoutingTrace:
        """The requests with index ``start`` to ``stop`` (exclusive), as :meth:`read`."""
        offsets = self.request_offsets
        check_range(start, stop, self.requests, "requests", self.path)
        return self.read(slice(int(offsets[start]), int(offsets[stop])), layers)

    def windows(
        self, layers: Iterable[int] | None = None, *, ids_only: bool = False
    ) -> Iterator[RoutingTrace]:
        """All tokens in consecutive windows, what is read of them checked: memory stays bounded.

        Args:
            layers: true layer indices; None = all.
            ids_only: leave gate weights and candidates unread.
        """
        return self._windows(0, self.tokens, layers, ids_only)

    def _windows(
        self, start: int, stop: int, layers: Iterable[int] | None, ids_only: bool = False
    ) -> Iterator[RoutingTrace]:
        candidates = 0 if ids_only else self.meta.candidates
        meta = replace(self.meta, layers=self._layers(layers), candidates=candidates)
        columns = [
            name for name in ("request", "position", *_NUMBER_COLUMNS, "category") if name in self._names
        ]
        for kind in ("experts",) if ids_only else self._kinds:
            columns += [f"{kind}_{layer}" for layer in meta.layers]
        after = (-1, -1)
        for first_token, batch in self._batches(start, stop, columns):
            window = self._decode(batch, meta, first_token)
            after = window.validate(file=self.path, first_token=first_token, after=after)
            yield window

    def _decode(self, batch: pa.RecordBatch, meta: TraceMeta, start: int) -> RoutingTrace:
        found = Columns(batch, meta, self.path, start)
        optional: dict[str, Any] = {}
        for name in _NUMBER_COLUMNS:
            if name in self._names:
                optional[f"{name}_T"] = found.numbers(name)
        if "category" in self._names:
            optional["category_T"] = found.category_codes(self.categories)
            optional["categories"] = self.categories
        if meta.candidates:
            optional["candidate_ids_TLC"] = found.ids("candidates", meta.candidates)
            optional["candidate_scores_TLC"] = found.floats("scores", meta.candidates)
        weights = f"weights_{meta.layers[0]}" in batch.schema.names
        return RoutingTrace(
            meta=meta,
            ids_TLK=found.ids("experts", meta.top_k),
            weights_TLK=found.floats("weights", meta.top_k) if weights else None,
            request_T=found.numbers("request"),
            position_T=found.numbers("position"),
            **optional,
        )

    def _batches(self, start: int, stop: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Pieces of at most 16,384 rows between ``start`` and ``stop``, each with its first row's index.

        Only row groups that overlap the range are touched, and of these only ``columns``.
        """
        footer = self._parquet.metadata
        layer_numbers = self.meta.top_k + self.meta.candidates
        rows = max(1, min(WINDOW_TOKENS, _WINDOW_NUMBERS // (len(self.meta.layers) * layer_numbers)))
        group_stop = 0
        for group in range(footer.num_row_groups):
            row, group_stop = group_stop, group_stop + footer.row_group(group).num_rows
            if group_stop <= start or row >= stop:
                continue
            with parquet.reading(self.path, TraceError):
                batches = self._parquet.iter_batches(rows, row_groups=[group], columns=columns)
            with closing(batches):
                while row < min(group_stop, stop):
                    with parquet.reading(self.path, TraceError):
                        batch = next(batches, None)
                    if batch is None:
                        raise TraceError(
                            "is damaged: a row group holds too few rows", file=self.path, got=row
                        )
                    first, last = max(start - row, 0), min(stop - row, batch.num_rows)
                    if first < last:
                        yield row + first, batch.slice(first, last - first)
                    row += batch.num_rows

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self._parquet.schema_arrow.names)

    @property
    def _kinds(self) -> Iterator[str]:
        """The per-layer quantities that the file stores."""
        yield "experts"
        if self.has_weights:
            yield "weights"
        if self.meta.candidates:
            yield from ("candidates", "scores")

    def _check_columns(self) -> None:
        needed = ["request", "position"]
        for kind in self._kinds:
            needed += [f"{kind}_{layer}" for layer in self.meta.layers]
        parquet.require_columns(self._parquet, needed, self.path, TraceError)
        parquet.require_texts(self._parquet, ["category"], self.path, TraceError)
        if self.tokens == 0:
            raise TraceError("has no tokens", file=self.path)

    def _range(self, tokens: slice | None) -> tuple[int, int]:
        wanted = tokens or slice(None)
        start = 0 if wanted.start is None else wanted.start
        stop = self.tokens if wanted.stop is None else wanted.stop
        if wanted.step not in (None, 1) or not 0 <= start < stop <= self.tokens:
            rule = f"must be a range within 0:{self.tokens}"
            raise TraceError(rule, file=self.path, field="tokens", got=f"{start}:{stop}")
        return start, stop

    def _layers(self, layers: Iterable[int] | None) -> tuple[int, ...]:
        if layers is None:
            return self.meta.layers
        wanted = tuple(sorted(set(layers)))
        for layer in wanted:
            if layer not in self.meta.layers:
                known = ", ".join(map(str, self.meta.layers))
                raise TraceError(f"has MoE layers {known} only", file=self.path, field="layers", got=layer)
        if not wanted:
            raise TraceError("must name at least one layer", file=self.path, field="layers", got=wanted)
        return wanted


def _category_names(found: dict[str, Any], path: Path) -> tuple[str, ...] | None:
    names = found.get("categories")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TraceError("must be a list of texts", file=path, field="categories", got=names)
    if len(set(names)) != len(names):
        raise TraceError("must not repeat a name", file=path, field="categories")
    return tuple(names)


def read_trace(path: str | Path) -> RoutingTrace:
    """Read a whole trace and check every rule of the format.

    Raises:
        TraceError: the file is not a trace, breaks a rule, or does not fit into memory.
    """
    with TraceFile(path) as file:
        return file.read()
