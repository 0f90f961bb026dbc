"""The routing trace: which experts each token chose in each MoE layer, with what is known beside it.

Axes: T tokens, L MoE layers, K experts per token, C candidates per token, R requests.
The file format is described in ``docs/trace-format.md``; :mod:`traces.trace_file` reads it in parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from traces.base.arrays import Array, Ints
from traces.base.errors import TraceError
from traces.base.memory import require_memory
from traces.meta import TraceMeta

# Tokens of a row group and of a streamed window. Measured with 58 layers, top-8: going from 65,536 to
# 16,384 quarters the time to read 1,000 tokens and costs nothing else; 8,192 writes a fifth slower.
WINDOW_TOKENS = 16_384
MAX_CATEGORY_BYTES = 1 << 24  # of all names; every row group and the footer have them

TOKEN_ARRAYS = (
    "ids_TLK",
    "weights_TLK",
    "request_T",
    "position_T",
    "step_T",
    "source_rank_T",
    "category_T",
    "candidate_ids_TLC",
    "candidate_scores_TLC",
)


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Routing of T tokens, or of a window of them, in memory.

    Attributes:
        meta: the model's shape and the trace's origin.
        ids_TLK: chosen experts, uint8 up to 256 experts, else uint16; distinct within a token.
        weights_TLK: their gate weights, float16 or float32, or None where unknown.
        request_T: int32, the request's number, ascending: a request's tokens are contiguous.
        position_T: int32, the token's position in its request, ascending inside it.
        step_T: int32, the forward pass that processed the token, or None.
        source_rank_T: int32, the rank that held the token's attention, or None.
        category_T: int32, an index into ``categories``, -1 = unknown, or None.
        categories: names of kinds of requests, such as data sets.
        candidate_ids_TLC: the C > K best experts, the chosen ones among them, or None.
        candidate_scores_TLC: their router scores, float16 or float32.

    :meth:`validate` checks all of this; everything that reads, writes or imports a trace calls it.
    """

    meta: TraceMeta
    ids_TLK: Array
    weights_TLK: Array | None
    request_T: Array
    position_T: Array
    step_T: Array | None = None
    source_rank_T: Array | None = None
    category_T: Array | None = None
    categories: tuple[str, ...] = ()
    candidate_ids_TLC: Array | None = None
    candidate_scores_TLC: Array | None = None

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.ids_TLK)

    @property
    def has_weights(self) -> bool:
        """Whether gate weights are known."""
        return self.weights_TLK is not None

    @property
    def request_offsets(self) -> Ints:
        """int64 [R+1]: the tokens of the r-th request are rows ``offsets[r]:offsets[r+1]``."""
        starts = np.flatnonzero(np.diff(self.request_T)) + 1
        return np.concatenate(([0], starts, [self.tokens])).astype(np.int64)

    def present(self) -> Iterator[tuple[str, Array]]:
        """The arrays that the trace has, by name, in a fixed order."""
        for name in TOKEN_ARRAYS:
            array = getattr(self, name)
            if array is not None:
                yield name, array

    def select_tokens(self, start: int, stop: int) -> RoutingTrace:
        """Tokens ``start`` to ``stop`` (exclusive), as views.

        Raises:
            TraceError: the range is empty or reaches outside the trace.
        """
        check_range(start, stop, self.tokens, "tokens")
        parts: dict[str, Any] = {name: array[start:stop] for name, array in self.present()}
        return replace(self, **parts)

    def select_requests(self, start: int, stop: int) -> RoutingTrace:
        """The requests with index ``start`` to ``stop`` (exclusive), as views.

        Raises:
            TraceError: the range is empty or reaches outside the trace.
        """
        offsets = self.request_offsets
        check_range(start, stop, len(offsets) - 1, "requests")
        return self.select_tokens(int(offsets[start]), int(offsets[stop]))

    def windows(self, tokens: int = WINDOW_TOKENS, *, ids_only: bool = False) -> Iterator[RoutingTrace]:
        """Consecutive windows of at most ``tokens`` tokens, as :meth:`TraceFile.windows` gives them."""
        whole = self
        if ids_only:
            meta = replace(self.meta, candidates=0)
            whole = replace(
                self, meta=meta, weights_TLK=None, candidate_ids_TLC=None, candidate_scores_TLC=None
            )
        for start in range(0, self.tokens, tokens):
            yield whole.select_tokens(start, min(start + tokens, self.tokens))

    def digest(self) -> str:
        """SHA-256 over metadata and arrays: equal for equal content, whatever the file looked like."""
        head = {**self.meta.to_dict(), "categories": list(self.categories)}
        sha = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for name, array in self.present():
            sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()

    def validate(
        self, *, file: str | Path | None = None, first_token: int = 0, after: tuple[int, int] = (-1, -1)
    ) -> tuple[int, int]:
        """Check every rule of the format.

        Args:
            file: named in messages.
            first_token: index in the file of this window's first token.
            after: request and position of the token before it, to check a file window by window.

        Returns:
            request and position of the last token, the next window's ``after``.

        Raises:
            TraceError: naming file, column, token, rule and value.
        """
        from traces import checks  # here: numba loads only where a trace is checked

        self._check_shapes(file)
        place = checks.Place(file, first_token)
        experts = self.meta.experts

        def names(kind: str) -> list[str]:
            return [f"{kind}_{layer}" for layer in self.meta.layers]

        checks.check_ids(self.ids_TLK, experts, names("experts"), place)
        if self.weights_TLK is not None:
            checks.check_weights(self.weights_TLK, names("weights"), place)
        if self.candidate_ids_TLC is not None and self.candidate_scores_TLC is not None:
            checks.check_ids(self.candidate_ids_TLC, experts, names("candidates"), place)
            checks.check_candidates(self.ids_TLK, self.candidate_ids_TLC, experts, names("candidates"), place)
            checks.check_scores(self.candidate_scores_TLC, names("scores"), place)
        if self.step_T is not None:
            checks.check_least(self.step_T, 0, "step", place)
        if self.source_rank_T is not None:
            checks.check_least(self.source_rank_T, 0, "source_rank", place)
        if self.category_T is not None:
            checks.check_least(self.category_T, -1, "category", place)
            most = self.category_T.max()
            if most >= len(self.categories):
                rule = f"must be below {len(self.categories)}, the number of categories"
                raise TraceError(rule, file=file, field="category", got=most)
        return checks.check_order(self.request_T, self.position_T, place, after)

    def _check_shapes(self, file: str | Path | None) -> None:
        meta = self.meta
        tokens, layers = self.tokens, len(meta.layers)
        floats = (np.dtype(np.float16), np.dtype(np.float32))
        allowed = {"ids_TLK": (meta.ids_dtype,), "candidate_ids_TLC": (meta.ids_dtype,)}
        for name, array in self.present():
            axes = name.rsplit("_", 1)[1]
            sizes = {"T": tokens, "L": layers, "K": meta.top_k, "C": meta.candidates}
            shape = tuple(sizes[axis] for axis in axes)
            if array.shape != shape:
                raise TraceError(f"must have shape {shape}", file=file, field=name, got=array.shape)
            dtypes = allowed.get(name, floats if len(axes) == 3 else (np.dtype(np.int32),))
            if array.dtype not in dtypes:
                rule = "must be " + " or ".join(str(dtype) for dtype in dtypes)
                raise TraceError(rule, file=file, field=name, got=array.dtype)
        if tokens == 0:
            raise TraceError("has no tokens", file=file)
        if (self.candidate_ids_TLC is None) != (meta.candidates == 0):
            raise TraceError("does not match the candidates stored", file=file, field="candidates")
        if (self.candidate_ids_TLC is None) != (self.candidate_scores_TLC is None):
            raise TraceError("candidates and their scores come together", file=file)
        if len(set(self.categories)) != len(self.categories):
            raise TraceError("must not repeat a name", file=file, field="categories")
        try:
            size = sum(len(name.encode()) for name in self.categories)
        except UnicodeEncodeError as error:  # a lone surrogate, which JSON can smuggle in
            raise TraceError("must be valid Unicode", file=file, field="categories") from error
        if size > MAX_CATEGORY_BYTES:
            rule = f"may take at most {MAX_CATEGORY_BYTES} bytes in all"
            raise TraceError(rule, file=file, field="categories", got=size)


def check_range(start: int, stop: int, count: int, field: str, file: Path | None = None) -> None:
    """Refuse a range that is empty, or reaches outside of what is counted."""
    if not 0 <= start < stop <= count:
        raise TraceError(f"must be a range within 0:{count}", file=file, field=field, got=f"{start}:{stop}")


def join(pieces: Iterable[RoutingTrace], tokens: int, *, file: str | Path | None = None) -> RoutingTrace:
    """One trace of the ``tokens`` tokens that ``pieces`` hold in turn, all with the same columns.

    Raises:
        TraceError: the pieces hold other columns or another number of tokens, or the whole does not
            fit into memory.
    """
    first: RoutingTrace | None = None
    whole: dict[str, Array] = {}
    done = 0
    for piece in pieces:
        arrays = dict(piece.present())
        if first is None:
            first = piece
            row_bytes = sum(array[:1].nbytes for array in arrays.values())
            require_memory(
                tokens * row_bytes,
                f"the trace with {tokens} tokens",
                error=TraceError,
                file=file,
                way_out="read a window of it, or fewer layers",
            )
            whole = {
                name: np.empty((tokens, *array.shape[1:]), array.dtype) for name, array in arrays.items()
            }
        same = (piece.meta, piece.categories) == (first.meta, first.categories)
        if arrays.keys() != whole.keys() or not same:
            raise TraceError("the parts of a trace must have the same columns and metadata", file=file)
        if done + piece.tokens > tokens:
            break
        for name, array in arrays.items():
            whole[name][done : done + piece.tokens] = array
        done += piece.tokens
    if first is None or done != tokens:
        raise TraceError(f"must hold {tokens} tokens", file=file, got=done)
    parts: dict[str, Any] = whole
    return replace(first, **parts)
