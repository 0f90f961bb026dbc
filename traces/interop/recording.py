"""A foreign recording while it is read: piece by piece, so that a conversion never holds all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from traces.base.arrays import Array
from traces.base.errors import TraceError
from traces.interop.hints import Hints
from traces.interop.written import Written, blank
from traces.meta import TraceMeta, in_file
from traces.routing import RoutingTrace, join
from traces.trace_writer import trace_writer

MAX_LAYERS = 4096  # far above any model: what has more rows is not a recording


@dataclass(frozen=True)
class Recording:
    """Consecutive pieces of a trace, not yet checked against its rules; they can be read once.

    Attributes:
        file: where they come from, for messages.
        written: which tokens were left out of the pieces so far.
    """

    file: Path
    meta: TraceMeta
    pieces: Iterator[RoutingTrace | None]
    categories: tuple[str, ...] = ()
    written: Written = field(default_factory=Written)

    def __iter__(self) -> Iterator[RoutingTrace]:
        """The pieces that hold tokens.

        Raises:
            TraceError: none does.
        """
        found = False
        for piece in self.pieces:
            if piece is not None:
                found = True
                yield piece
        if not found:
            rule = "holds no token that a router wrote: one number stands in all columns of all layers"
            raise TraceError(rule if self.written.left_out else "has no tokens", file=self.file)

    def read(self) -> RoutingTrace:
        """The whole trace, checked; what was left out is told in its origin.

        Raises:
            TraceError: a rule of the format is broken, or the trace does not fit into memory.
        """
        parts: list[RoutingTrace] = []
        tokens, after = 0, (-1, -1)
        for piece in self:
            after = piece.validate(file=self.file, first_token=tokens, after=after)
            tokens += piece.tokens
            parts.append(piece)
        whole = parts[0] if len(parts) == 1 else join(parts, tokens, file=self.file)
        return self.written.noted(whole)

    def write(self, out: str | Path) -> None:
        """Check the pieces and write each as it comes.

        Raises:
            TraceError: a rule of the format is broken.
            OutputError: the file cannot be written.
        """
        with trace_writer(out, self.meta, categories=self.categories) as writer:
            for piece in self:
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
    """The recording of ``parts``, whose first one that a router wrote tells the shape of all.

    Raises:
        TraceError: there is no such part, or the shape does not fit what the user said; while the pieces
            are read: a part of another shape, or an id that is no expert.
    """
    waiting = iter(parts)
    unwritten = []
    for first in waiting:
        if first.ids_TLK.size == 0:
            raise TraceError("has no tokens", file=first.file, line=first.line, got=first.ids_TLK.shape)
        if hints.layers is not None or not blank(first.ids_TLK).all():
            break
        unwritten.append(first)
    else:
        if unwritten:
            rule = "has no layer in which tokens choose different experts: no router wrote it"
            raise TraceError(rule, file=file)
        raise TraceError("holds no request", file=file)
    rows, layers = moe_rows(first.ids_TLK, hints, file=first.file)
    largest = int(first.ids_TLK[:, rows].max())
    meta = hints.meta(first.ids_TLK.shape[2], layers, file=first.file, origin=origin, largest=largest)
    written = Written()

    def pieces() -> Iterator[RoutingTrace | None]:
        for part in chain(unwritten, [first], waiting):
            if part.ids_TLK.shape[1:] != first.ids_TLK.shape[1:]:
                shape = first.ids_TLK.shape[1:]
                rule = f"must have {shape[0]} layers and {shape[1]} experts per token, as the first request"
                raise TraceError(rule, file=part.file, line=part.line, got=part.ids_TLK.shape[1:])
            ids_TLK = part.ids_TLK if len(rows) == part.ids_TLK.shape[1] else part.ids_TLK[:, rows]
            yield written.piece(
                meta,
                ids_TLK,
                np.full(len(ids_TLK), part.request, np.int32),
                file=part.file,
                line=part.line,
                weights_TLK=None,
                position_T=part.position_T,
            )

    return Recording(file, meta, pieces(), written=written)


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
        found = np.flatnonzero(~blank(ids_TLK).all(axis=0)).tolist()
        return found, tuple(found)
    if rows == len(hints.layers):
        return list(range(rows)), hints.layers
    if rows == hints.hidden_layers or (hints.hidden_layers is None and max(hints.layers) < rows):
        return list(hints.layers), hints.layers
    whole = f" of {hints.hidden_layers}" if hints.hidden_layers is not None else ""
    rule = f"has {rows} layers, {hints.name} has {len(hints.layers)} MoE layers{whole}"
    raise TraceError(rule, file=file, field="layers")


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
