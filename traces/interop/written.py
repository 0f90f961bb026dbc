"""Tokens that no router wrote: a server's buffers have rows for tokens that it never computed.

Such are the tokens of a cached prefix, or the padding of a batch. Their rows hold one number in all K
columns, the zeros or −1 of a buffer that nothing wrote to, while a router chooses K different experts. Axes:
T tokens, L MoE layers, K experts of a token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from traces.base.arrays import Array, Bools
from traces.base.errors import TraceError
from traces.meta import TraceMeta
from traces.routing import RoutingTrace


@dataclass
class Written:
    """What of a recording a router wrote, piece after piece.

    Attributes:
        tokens: seen so far.
        left_out: those among them that no router wrote.
        others: rows of the file that are of no token.
    """

    tokens: int = 0
    left_out: int = 0
    others: int = 0
    _request: int = -1
    _number: int = -1

    def piece(
        self,
        meta: TraceMeta,
        ids_TLK: Array,
        request_T: Array,
        *,
        file: Path,
        line: int | None = None,
        **columns: Any,
    ) -> RoutingTrace | None:
        """A piece of the trace without the tokens that no router wrote; None where that leaves none.

        Args:
            ids_TLK: expert ids of any integer type.
            request_T: int32; those of which a token stays are numbered anew where others lose all.
            columns: what else is known, by the names of :class:`RoutingTrace`.

        Raises:
            TraceError: a token was written in some layers and not in others, or an id is no expert.
        """
        first, self.tokens = self.tokens, self.tokens + len(ids_TLK)
        blank_TL = blank(ids_TLK)
        gone_T: Bools = np.all(blank_TL, axis=1)
        if (blank_TL & ~gone_T[:, None]).any():
            token, row = np.argwhere(blank_TL & ~gone_T[:, None])[0].tolist()
            raise TraceError(
                "was not written by a router, which chooses different experts; others of this token were",
                file=file,
                line=line,
                field=f"layer {meta.layers[row]}, token {first + token}",
                got=f"{ids_TLK[token, row, 0]} in all {meta.top_k} columns",
            )
        self.left_out += int(gone_T.sum())
        if gone_T.all():
            return None
        if gone_T.any():
            columns = {name: _kept(value, ~gone_T) for name, value in columns.items()}
            ids_TLK, request_T = ids_TLK[~gone_T], request_T[~gone_T]
        ids = to_ids(ids_TLK, meta, file=file, line=line, first_token=first)
        return RoutingTrace(meta=meta, ids_TLK=ids, request_T=self._numbered(request_T), **columns)

    def _numbered(self, request_T: Array) -> Array:
        """Requests counted without those that lost all their tokens."""
        if self.left_out:
            new_T = np.diff(request_T, prepend=np.int32(self._request)) != 0
            numbered_T = (self._number + np.cumsum(new_T)).astype(np.int32)
        else:
            numbered_T = request_T
        self._request, self._number = int(request_T[-1]), int(numbered_T[-1])
        return numbered_T

    @property
    def note(self) -> str:
        """How many tokens and rows were left out, and why; empty where none was."""
        notes = []
        if self.left_out:
            notes.append(f"{self.left_out:,} of {self.tokens:,} tokens left out: no router wrote them")
        if self.others:
            notes.append(f"{self.others:,} rows left out: they have neither token nor layer nor experts")
        return "; ".join(notes)

    def noted(self, trace: RoutingTrace) -> RoutingTrace:
        """The trace with :attr:`note` in its origin."""
        if not self.note:
            return trace
        origin = "; ".join(filter(None, (trace.meta.origin, self.note)))
        return replace(trace, meta=replace(trace.meta, origin=origin))


def blank(ids_TLK: Array) -> Bools:
    """bool [T, L]: whether one number stands in all K columns; with K = 1, whether it is negative.

    >>> blank(np.array([[[0, 0], [0, 3]], [[-1, -1], [5, 5]]])).tolist()
    [[True, False], [True, True]]
    """
    if ids_TLK.shape[2] == 1:
        return np.asarray(ids_TLK[:, :, 0] < 0)
    same_TL: Bools = np.ones(ids_TLK.shape[:2], np.bool_)
    for column in range(1, ids_TLK.shape[2]):
        if not same_TL.any():  # mostly after the first column
            break
        same_TL &= ids_TLK[:, :, column] == ids_TLK[:, :, 0]
    return same_TL


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


def _kept(value: Any, kept_T: Bools) -> Any:
    """A column's part; what is no column, such as the names of categories, stays."""
    return value[kept_T] if isinstance(value, np.ndarray) else value
