"""Routing as rows of text: CSV and JSON lines with a token's choice in one layer in each row."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from traces.base.arrays import Array
from traces.base.errors import TraceError
from traces.base.input_file import first_bytes, require_file
from traces.base.memory import require_memory
from traces.interop.hints import Hints
from traces.interop.recording import MAX_LAYERS, Recording, to_ids, to_int32
from traces.routing import RoutingTrace

_NEEDED = ("token", "layer", "experts")
_EXPANSION = 8  # bytes in memory for one of a file, while it is parsed and sorted


class CsvRows:
    """Columns ``token``, ``layer``, ``experts`` and perhaps ``weights`` and ``request``, in any row order.

    ``experts`` and ``weights`` hold K numbers apart by blanks, commas or semicolons, bracketed or not:
    ``3 17 5 9`` or ``"[3, 17, 5, 9]"``. ``token`` is the position in its request; without ``request`` all
    rows are of one. ``layer`` is the layer's true index in the model.
    """

    summary: ClassVar[str] = "CSV with columns token, layer, experts, and perhaps weights and request"

    def detects(self, path: Path) -> bool:
        names = _first_line(path).decode("utf-8-sig", "replace").strip().replace('"', "").split(",")
        return set(_NEEDED) <= {name.strip() for name in names}

    def open(self, path: Path, hints: Hints) -> Recording:
        def parse() -> pa.Table:
            # Everything as text: that a column of single numbers is one of lists is not CSV's to know.
            options = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys((*_NEEDED, "weights", "request"), pa.string()),
                strings_can_be_null=True,
            )
            return pyarrow.csv.read_csv(path, convert_options=options)

        return _recording(path, hints, parse, "CSV")


class JsonRows:
    """The same columns as objects, one in each line; ``experts`` and ``weights`` are lists."""

    summary: ClassVar[str] = "JSON lines with token, layer, experts, and perhaps weights and request"

    def detects(self, path: Path) -> bool:
        line = _first_line(path)
        return line.lstrip()[:1] == b"{" and all(f'"{name}"'.encode() in line for name in _NEEDED)

    def open(self, path: Path, hints: Hints) -> Recording:
        return _recording(path, hints, lambda: pyarrow.json.read_json(path), "JSON lines")


@dataclass(frozen=True)
class _Rows:
    """N rows: ``request_N`` counted from 0 in order of appearance, ids and weights [N, K]."""

    request_N: Array
    token_N: Array
    layer_N: Array
    ids_NK: Array
    weights_NK: Array | None


def _recording(path: Path, hints: Hints, parse: Callable[[], pa.Table], kind: str) -> Recording:
    size = require_file(path, kind, TraceError)
    require_memory(_EXPANSION * size, f"{kind} of {size} bytes", error=TraceError, file=path)
    try:
        rows = _columns(parse(), path)
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
    meta = hints.meta(top_k, layers, file=path, origin=kind, largest=int(rows.ids_NK.max()))
    order_N = _order(rows, layers, path)
    shape = (-1, len(layers), top_k)
    weights = None if rows.weights_NK is None else rows.weights_NK[order_N].reshape(shape)
    first_T = order_N[:: len(layers)]
    trace = RoutingTrace(
        meta=meta,
        ids_TLK=to_ids(rows.ids_NK[order_N].reshape(shape), meta, file=path),
        weights_TLK=weights,
        request_T=rows.request_N[first_T].astype(np.int32),
        position_T=to_int32(rows.token_N[first_T], "token", path),
    )
    return Recording(path, meta, iter([trace]))


def _columns(table: pa.Table, path: Path) -> _Rows:
    for name in _NEEDED:
        if name not in table.column_names:
            raise TraceError(f"lacks column {name}", file=path)
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
    token_N, layer_N = (_column(table, name, path).cast(pa.int64()).to_numpy() for name in ("token", "layer"))
    return _Rows(request_N, token_N, layer_N, ids_NK, weights_NK)


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


def _first_line(path: Path) -> bytes:
    """The start of the first line; nothing where ``path`` is no file."""
    return first_bytes(path, 1 << 16).partition(b"\n")[0]
