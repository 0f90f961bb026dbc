"""Routing as rows of text: CSV and JSON lines with a token's choice in one layer in each row."""

from __future__ import annotations

import csv
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from traces.base.arrays import Array, ranks
from traces.base.door import first_bytes, open_file, require_file
from traces.base.errors import TraceError
from traces.interop.columns import ROUTING, found_columns, require_columns
from traces.interop.hints import Hints
from traces.interop.recording import MAX_LAYERS, Recording, to_int32
from traces.interop.written import Written

_NEEDED = ("token", "layer", "experts")
# Bytes in memory for one of a file of short rows, while they are parsed and sorted, as measured.
_EXPANSION = {"CSV": 30, "JSON lines": 14}
_GLANCE = 1 << 16  # bytes of a file in which its first lines are looked for
_EXPERTS_KEYS = ("num_experts", "n_routed_experts", "num_local_experts", "n_experts")


class CsvRows:
    """Columns ``token``, ``layer``, ``experts`` and perhaps ``weights`` and ``request``, in any row order.

    ``experts`` and ``weights`` hold K numbers apart by blanks, commas or semicolons, bracketed or not:
    ``3 17 5 9`` or ``"[3, 17, 5, 9]"``. ``token`` is the position in its request, or the token as text, whose
    position then is the order of the rows; without ``request`` all rows are of one. ``layer`` is the layer's
    true index in the model. Synonyms of the names are in :mod:`traces.interop.columns`.
    """

    summary: ClassVar[str] = "CSV with columns token, layer, experts, and perhaps weights and request"

    def detects(self, path: Path) -> bool:
        return {"layer", "experts"} <= found_columns(csv_names(path), ROUTING).keys()

    def open(self, path: Path, hints: Hints) -> Recording:
        names = csv_names(path)
        columns = found_columns(names, ROUTING)

        def parse() -> pa.Table:
            if not names:
                raise ValueError("its first line names no columns")
            require_columns(columns, _NEEDED, names, ROUTING, TraceError, path)
            # Everything as text: that a column of single numbers is one of lists is not CSV's to know.
            options = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns.values(), pa.string()),
                include_columns=list(columns.values()),
                strings_can_be_null=True,
            )
            lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
            with open_file(path, "CSV", TraceError) as file:
                return pyarrow.csv.read_csv(file, convert_options=options, parse_options=lines)

        return _recording(path, hints, parse, "CSV")


class JsonRows:
    """The same columns as objects, one in each line; ``experts`` and ``weights`` are lists.

    Lines before them that are of no token, such as one about the model, may tell E.
    """

    summary: ClassVar[str] = "JSON lines with token, layer, experts, and perhaps weights and request"

    def detects(self, path: Path) -> bool:
        return any({"layer", "experts"} <= found_columns(keys, ROUTING).keys() for keys in _first_keys(path))

    def open(self, path: Path, hints: Hints) -> Recording:
        head = _Head.of(path)

        def parse() -> pa.Table:
            with open_file(path, "JSON lines", TraceError) as file:
                file.seek(head.size)
                return pyarrow.json.read_json(file)

        return _recording(path, hints, parse, "JSON lines", head)


@dataclass(frozen=True)
class _Head:
    """The first lines of a file, which are of no token: their bytes, and what they tell."""

    size: int = 0
    experts: int | None = None
    model: str = ""

    @classmethod
    def of(cls, path: Path) -> _Head:
        require_file(path, "JSON lines", TraceError)
        size, told = 0, dict[str, Any]()
        for line in first_bytes(path, _GLANCE).splitlines(keepends=True):
            content = _object(line)
            if content is None or found_columns(content, ROUTING).keys() & {"token", "experts"}:
                break
            size, told = size + len(line), told | content
        else:
            return cls()  # nothing but such lines: let all of them be looked at
        experts = next((told[key] for key in _EXPERTS_KEYS if type(told.get(key)) is int), None)
        model = told.get("model", told.get("model_id"))
        return cls(size, experts, model if isinstance(model, str) else "")


@dataclass(frozen=True)
class _Rows:
    """N rows: ``request_N`` counted from 0 in order of appearance, ids and weights [N, K]."""

    request_N: Array
    token_N: Array
    layer_N: Array
    ids_NK: Array
    weights_NK: Array | None


def _recording(
    path: Path, hints: Hints, parse: Callable[[], pa.Table], kind: str, head: _Head = _Head()
) -> Recording:
    require_file(path, kind, TraceError, times=_EXPANSION[kind])
    written = Written()
    try:
        rows = _columns(_tokens(parse(), written, path), path)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as fault:
        # pyarrow quotes the row, which may be anything.
        reason = "".join(itertools.takewhile(str.isprintable, str(fault)))[:200].rstrip(" :")
        reason = reason or type(fault).__name__
        raise TraceError(f"is not {kind} that can be read: {reason}", file=path) from fault
    layers = tuple(np.unique(rows.layer_N).tolist())
    if layers[0] < 0 or len(layers) > MAX_LAYERS:
        rule = f"must be at least 0, and of at most {MAX_LAYERS} layers"
        raise TraceError(rule, file=path, field="layer", got=layers[0])
    if hints.layers is not None and not set(layers) <= set(hints.layers):
        strange = next(layer for layer in layers if layer not in hints.layers)
        raise TraceError(f"is no MoE layer of {hints.name}", file=path, field="layer", got=strange)
    top_k = rows.ids_NK.shape[1]
    largest = int(rows.ids_NK.max())
    meta = hints.meta(top_k, layers, file=path, experts=head.experts, origin=kind, largest=largest)
    meta = replace(meta, model=meta.model or head.model)
    order_N = _order(rows, layers, path)
    shape = (-1, len(layers), top_k)
    weights = None if rows.weights_NK is None else rows.weights_NK[order_N].reshape(shape)
    first_T = order_N[:: len(layers)]
    trace = written.piece(
        meta,
        rows.ids_NK[order_N].reshape(shape),
        rows.request_N[first_T].astype(np.int32),
        file=path,
        weights_TLK=weights,
        position_T=to_int32(rows.token_N[first_T], "token", path),
    )
    return Recording(path, meta, iter([trace]), written=written)


def _tokens(table: pa.Table, written: Written, path: Path) -> pa.Table:
    """The rows of tokens under our names of columns; others, which have none of these, are left out."""
    columns = found_columns(table.column_names, ROUTING)
    require_columns(columns, _NEEDED, table.column_names, ROUTING, TraceError, path)
    renamed = pa.table({ours: table.column(theirs) for ours, theirs in columns.items()})
    other = functools.reduce(pc.and_, (pc.is_null(renamed.column(name)) for name in _NEEDED))
    others = pc.sum(other).as_py() or 0
    if others:
        written.others = others
        renamed = renamed.filter(pc.invert(other))
    return renamed


def _columns(table: pa.Table, path: Path) -> _Rows:
    if table.num_rows == 0:
        raise TraceError("has no tokens", file=path)
    request_N = np.zeros(table.num_rows, np.int32)
    if "request" in table.column_names:
        encoded = _column(table, "request", path).dictionary_encode()
        request_N = encoded.indices.to_numpy(zero_copy_only=False)
    weights_NK = None
    ids_NK = _lists(table, "experts", pa.int64(), path)
    if "weights" in table.column_names:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            weights_NK = _lists(table, "weights", pa.float64(), path).astype(np.float32)
        if weights_NK.shape != ids_NK.shape:
            rule = f"must hold {ids_NK.shape[1]} numbers, as experts"
            raise TraceError(rule, file=path, field="weights", got=weights_NK.shape[1])
    layer_N = _column(table, "layer", path).cast(pa.int64()).to_numpy()
    token_N = _positions(table, request_N, layer_N, path)
    return _Rows(request_N, token_N, layer_N, ids_NK, weights_NK)


def _positions(table: pa.Table, request_N: Array, layer_N: Array, path: Path) -> Array:
    """int64 [N]: what ``token`` says, or where it is text, the order of the rows of a request and layer."""
    column = table.column("token")
    if pa.types.is_string(column.type):
        numbers = pc.sum(pc.match_substring_regex(column, r"^\s*-?[0-9]+\s*$")).as_py() or 0
        if 2 * numbers <= table.num_rows:  # a slip among numbers is refused below
            return ranks(request_N.astype(np.int64) * (int(layer_N.max()) + 1) + layer_N)
    positions: Array = _column(table, "token", path).cast(pa.int64()).to_numpy()
    return positions


def _column(table: pa.Table, name: str, path: Path) -> Any:
    column = table.column(name).combine_chunks()
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise TraceError("must not be empty", file=path, field=f"{name}, row {row}")
    return column


def _lists(table: pa.Table, name: str, kind: pa.DataType, path: Path) -> Array:
    """A column of lists of numbers, or of texts that hold such lists, as [N, K]."""
    column = _column(table, name, path)
    if pa.types.is_string(column.type):
        trimmed = pc.utf8_trim(column, characters=" []()")
        column = pc.split_pattern_regex(trimmed, r"[\s,;]+")
    if not pa.types.is_list(column.type):
        raise TraceError("must be lists of numbers", file=path, field=name, got=column.type)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if lengths.min() != lengths.max() or lengths[0] == 0:
        row = int(np.argmax(lengths != max(lengths[0], 1)))
        rule = f"must hold {max(lengths[0], 1)} numbers, as the first row"
        raise TraceError(rule, file=path, field=f"{name}, row {row}", got=lengths[row])
    values = column.flatten()
    if values.null_count:
        raise TraceError("must not hold nulls", file=path, field=name)
    return np.asarray(values.cast(kind)).reshape(len(column), -1)


def _order(rows: _Rows, layers: tuple[int, ...], path: Path) -> Array:
    """The rows by request, token and layer, in which every token has one row for each layer."""
    order_N = np.lexsort((rows.layer_N, rows.token_N, rows.request_N))
    request_N, token_N, layer_N = (column[order_N] for column in (rows.request_N, rows.token_N, rows.layer_N))
    wanted_N = np.resize(np.array(layers), len(order_N))
    starts_N = np.arange(len(order_N)) // len(layers) * len(layers)
    bad_N = (layer_N != wanted_N) | (token_N != token_N[starts_N]) | (request_N != request_N[starts_N])
    if bad_N.any() or len(order_N) % len(layers):
        at = int(np.argmax(bad_N)) if bad_N.any() else len(order_N) - 1
        place = f"token {token_N[at]} of request {request_N[at]}"
        rule = f"must have one row for each of {len(layers)} layers"
        raise TraceError(rule, file=path, field=place, got=f"layer {layer_N[at]}")
    return order_N


def csv_names(path: Path) -> list[str]:
    """The names in the first line; none where ``path`` is no file of text."""
    try:
        line = first_bytes(path, _GLANCE).partition(b"\n")[0].decode("utf-8-sig").strip()
        return [name.strip() for name in next(csv.reader([line]), [])] if line.isprintable() else []
    except (UnicodeDecodeError, csv.Error):
        return []


def _first_keys(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in the first lines, as long as there are some."""
    for line in first_bytes(path, _GLANCE).splitlines():
        content = _object(line)
        if content is None:
            return
        yield content


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None where it is none."""
    try:
        content = json.loads(line) if line.lstrip()[:1] == b"{" else None
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
