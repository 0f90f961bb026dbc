"""A foreign recording while it is read: piece by piece, so that a conversion never holds all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from traces.base.arrays import Array
from traces.base.errors import TraceError
from traces.interop.hints import Hints
from traces.meta import TraceMeta, in_file
from traces.routing import RoutingTrace, join
from traces.trace_writer import trace_writer

MAX_LAYERS = 4096  # far above any model: what has more rows is not a recording


@dataclass(frozen=True)
class Recording:
    """Consecutive pieces of a trace, not yet checked against its rules; they can be read once.

    Attributes:
        file: where they come from, for messages.
    """

    file: Path
    meta: TraceMeta
    pieces: Iterator[RoutingTrace]
    categories: tuple[str, ...] = ()

    def read(self) -> RoutingTrace:
        """The whole trace, checked.

        Raises:
            TraceError: a rule of the format is broken, or the trace does not fit into memory.
        """
        parts: list[RoutingTrace] = []
        tokens, after = 0, (-1, -1)
        for piece in self.pieces:
            after = piece.validate(file=self.file, first_token=tokens, after=after)
            tokens += piece.tokens
            parts.append(piece)
        return parts[0] if len(parts) == 1 else join(parts, tokens, file=self.file)

    def write(self, out: str | Path) -> None:
        """Check the pieces and write each as it comes.

        Raises:
            TraceError: a rule of the format is broken.
            OutputError: the file cannot be written.
        """
        with trace_writer(out, self.meta, categories=self.categories) as writer:
            for piece in self.pieces:
                try:
                    writer.append(piece)
                except TraceError as error:
                    raise in_file(error, self.file) from error


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of one request as a file has them.

    Attributes:
        request: its number, in the order of the parts.
        ids_TLK: expert ids of any integer type, a row for each MoE layer or for each hidden layer.
        position_T: int32.
        file, line: where they come from, for messages.
    """

    request: int
    ids_TLK: Array
    position_T: Array
    file: Path
    line: int | None = None


def from_requests(parts: Iterable[Part], hints: Hints, *, file: Path, origin: str = "") -> Recording:
    """The recording of ``parts``, whose first one tells the shape of all.

    Raises:
        TraceError: there is no part, or the shape does not fit what the user said; while the pieces
            are read: a part of another shape, or an id that is no expert.
    """
    waiting = iter(parts)
    first = next(waiting, None)
    if first is None:
        raise TraceError("holds no request", file=file)
    if first.ids_TLK.size == 0:
        raise TraceError("has no tokens", file=first.file, line=first.line, got=first.ids_TLK.shape)
    rows, layers = moe_rows(first.ids_TLK, hints, file=first.file)
    largest = int(first.ids_TLK[:, rows].max())
    meta = hints.meta(first.ids_TLK.shape[2], layers, file=first.file, origin=origin, largest=largest)

    def pieces() -> Iterator[RoutingTrace]:
        token = 0
        for part in chain([first], waiting):
            place: dict[str, Any] = {"file": part.file, "line": part.line}
            if part.ids_TLK.shape[1:] != first.ids_TLK.shape[1:]:
                shape = first.ids_TLK.shape[1:]
                rule = f"must have {shape[0]} layers and {shape[1]} experts per token, as the first request"
                raise TraceError(rule, **place, got=part.ids_TLK.shape[1:])
            ids_TLK = part.ids_TLK if len(rows) == part.ids_TLK.shape[1] else part.ids_TLK[:, rows]
            yield RoutingTrace(
                meta=meta,
                ids_TLK=to_ids(ids_TLK, meta, first_token=token, **place),
                weights_TLK=None,
                request_T=np.full(len(ids_TLK), part.request, np.int32),
                position_T=part.position_T,
            )
            token += len(ids_TLK)

    return Recording(file, meta, pieces())


def moe_rows(ids_TLK: Array, hints: Hints, *, file: Path) -> tuple[list[int], tuple[int, ...]]:
    """Which rows of the layer axis are MoE layers, and the true indices of these.

    Serving systems give a row to every hidden layer. Where no model says which are dense, they are the
    rows in which every token has the same number in all its K columns: the zeros or −1 of a buffer that
    nothing wrote to.

    >>> ids_TLK = np.array([[[0, 0], [3, 1]], [[0, 0], [1, 2]]])
    >>> moe_rows(ids_TLK, Hints(), file=Path("a.npy"))
    ([1], (1,))
    >>> moe_rows(ids_TLK, Hints(layers=(3, 4)), file=Path("a.npy"))
    ([0, 1], (3, 4))

    Raises:
        TraceError: the rows are neither the MoE layers nor all layers of the model that was named.
    """
    rows, columns = ids_TLK.shape[1:]
    if rows > MAX_LAYERS:
        raise TraceError(f"must have at most {MAX_LAYERS} layers", file=file, got=rows)
    if hints.layers is None:
        if columns == 1:  # one expert per token: a dense layer looks like any other
            return list(range(rows)), tuple(range(rows))
        written = (ids_TLK != ids_TLK[:, :, :1]).any(axis=(0, 2))
        if not written.any():
            raise TraceError("has no layer in which tokens choose different experts", file=file)
        found = np.flatnonzero(written).tolist()
        return found, tuple(found)
    if rows == len(hints.layers):
        return list(range(rows)), hints.layers
    if rows == hints.hidden_layers or (hints.hidden_layers is None and max(hints.layers) < rows):
        return list(hints.layers), hints.layers
    whole = f" of {hints.hidden_layers}" if hints.hidden_layers is not None else ""
    rule = f"has {rows} layers, {hints.name} has {len(hints.layers)} MoE layers{whole}"
    raise TraceError(rule, file=file, field="layers")


def to_ids(
    ids_TLK: Array, meta: TraceMeta, *, file: Path, line: int | None = None, first_token: int = 0
) -> Array:
    """Ids in the dtype of their model.

    Args:
        first_token: index of the first token, for messages.

    Raises:
        TraceError: an id is no logical expert of the model.
    """
    if ids_TLK.size and (ids_TLK.max() >= meta.experts or ids_TLK.min() < 0):
        token, row, column = np.argwhere((ids_TLK >= meta.experts) | (ids_TLK < 0))[0].tolist()
        raise TraceError(
            f"expert id must be at least 0 and below {meta.experts}",
            file=file,
            line=line,
            field=f"layer {meta.layers[row]}, token {first_token + token}",
            got=ids_TLK[token, row, column],
        )
    return np.ascontiguousarray(ids_TLK, meta.ids_dtype)


def to_int32(values: Array, field: str, file: Path) -> Array:
    """Counters such as positions as int32; what it cannot hold, or is negative, is refused."""
    wrong = (values > np.iinfo(np.int32).max) | (values < 0)
    if wrong.any():
        got = int(values[np.argmax(wrong)])
        raise TraceError("must be between 0 and 2147483647", file=file, field=field, got=got)
    return values.astype(np.int32, copy=False)


def count_up(lengths_R: Array) -> Array:
    """0, 1, 2, … inside each request of ``lengths_R`` tokens.

    >>> count_up(np.array([3, 1, 2]))
    array([0, 1, 2, 0, 0, 1])
    """
    ends = np.cumsum(lengths_R)
    counted: Array = np.arange(ends[-1]) - np.repeat(ends - lengths_R, lengths_R)
    return counted
