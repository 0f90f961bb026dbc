"""What the routers of a running model choose, put together into requests.

:mod:`traces.record` hangs it onto a model. Tensors are used by their methods: nothing is imported from torch.

Axes: N tokens of a call (B sequences of S, padding included), L MoE layers, K experts, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.base.arrays import Array
from traces.base.errors import TraceError
from traces.meta import TraceMeta
from traces.routing import RoutingTrace, join


@dataclass
class _Batch:
    """B sequences that grow call by call.

    Attributes:
        columns: tokens of each sequence so far, padding included: the length of the key-value cache.
        category: index of the sequences' category, -1 = unknown.
        parts: of each sequence, its tokens of each call: ids, weights, candidates, scores.
    """

    columns: int
    category: int
    parts: list[list[tuple[Array, ...]]]


class Recorder:
    """Puts together what hooks see; made by :func:`record`.

    Attributes:
        category: of the requests that begin from now on, a name out of ``categories``; None = unknown.
        tokens, requests: recorded so far.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        meta_of: Callable[[int, int], TraceMeta],
        categories: tuple[str, ...],
        begin: Callable[[TraceMeta], Callable[[RoutingTrace], None]] | None,
    ) -> None:
        """``meta_of(E, K)`` is the metadata; ``begin(meta)`` takes requests, None = keep them."""
        self.category: str | None = None
        self.tokens = self.requests = 0
        self._layers, self._meta_of = layers, meta_of
        self._categories, self._begin = categories, begin
        self._kept: list[RoutingTrace] = []
        self._meta: TraceMeta | None = None
        self._emit: Callable[[RoutingTrace], None] | None = None
        self._batch: _Batch | None = None
        self._seen: dict[int, tuple[Array, ...]] = {}

    @property
    def trace(self) -> RoutingTrace:
        """All that was recorded, once the block has ended, where no file was named.

        Raises:
            TraceError: nothing was kept.
        """
        if not self._kept:
            raise TraceError("keeps no trace: nothing was recorded, or it was written to a file")
        whole = join(self._kept, self.tokens)
        whole.validate()
        return whole

    def call(self, past: int, real_BS: Array) -> None:
        """The model begins with B sequences of S tokens.

        Args:
            past: tokens of each sequence in the key-value cache.
            real_BS: whether a token is no padding.
        """
        self._seen.clear()
        sequences = len(real_BS)
        if not past:
            self._flush()
            self._batch = _Batch(0, self._category(), [[] for _ in range(sequences)])
        batch = self._batch
        if batch is None or (batch.columns, len(batch.parts)) != (past, sequences):
            known = "nothing" if batch is None else f"{len(batch.parts)} sequences of {batch.columns} tokens"
            rule = f"must continue what was recorded: {known}"
            raise TraceError(rule, field="past_key_values", got=f"{sequences} sequences of {past} tokens")

    def choice(self, layer: int, output: Any) -> None:
        """A router has chosen: (logits [N, E], weights [N, K], indices [N, K])."""
        if layer in self._seen:
            raise TraceError("was called twice in one pass", field=f"router of layer {layer}")
        if not isinstance(output, tuple | list) or len(output) < 3:
            rule = "must return (logits, weights, indices)"
            raise TraceError(rule, field=f"router of layer {layer}", got=type(output).__name__)
        logits, weights, indices = (part.detach() for part in output[:3])
        shape = (int(logits.shape[-1]), int(indices.shape[-1]))
        meta = self._meta = self._meta or self._meta_of(*shape)
        if shape != (meta.experts, meta.top_k):
            rule = f"must choose {meta.top_k} of {meta.experts} experts, as the others"
            raise TraceError(rule, field=f"router of layer {layer}", got=f"{shape[1]} of {shape[0]}")
        arrays = [indices.cpu().numpy().astype(meta.ids_dtype), _floats(weights)]
        if meta.candidates:
            logits = logits.float()
            others = logits.scatter(-1, indices, float("-inf")).topk(meta.candidates - meta.top_k)
            ids = np.concatenate([arrays[0], others.indices.cpu().numpy()], axis=1)
            chosen = logits.gather(-1, indices).cpu().numpy()
            arrays.append(ids.astype(meta.ids_dtype))
            arrays.append(np.concatenate([chosen, others.values.cpu().numpy()], axis=1))
        self._seen[layer] = tuple(arrays)

    def end_call(self, real_BS: Array) -> None:
        """The model is done with what :meth:`call` announced."""
        silent = [layer for layer in self._layers if layer not in self._seen]
        if silent:
            rule = "was not called: the model computes its experts without it"
            raise TraceError(rule, field=f"router of layer {silent[0]}")
        assert self._batch is not None  # call() made it
        arrays_TL = [
            np.stack(column, axis=1) for column in zip(*(self._seen[i] for i in self._layers), strict=True)
        ]
        if len(arrays_TL[0]) != real_BS.size:
            raise TraceError(f"must see {real_BS.size} tokens", field="routers", got=len(arrays_TL[0]))
        for row, real_S in enumerate(real_BS):
            start = row * real_BS.shape[1]
            rows = start + np.flatnonzero(real_S)
            self._batch.parts[row].append(tuple(array[rows] for array in arrays_TL))
        self._batch.columns += real_BS.shape[1]

    def finish(self) -> None:
        """No call follows.

        Raises:
            TraceError: nothing was recorded.
        """
        self._flush()
        if self.tokens == 0:
            raise TraceError("has no tokens: the model was not called in the block")

    def _flush(self) -> None:
        """Hand on the sequences of the last batch, each whole."""
        batch, self._batch = self._batch, None
        if batch is None or self._meta is None:
            return
        if self._emit is None:
            self._emit = self._kept.append if self._begin is None else self._begin(self._meta)
        for parts in batch.parts:
            arrays = [np.concatenate(column) for column in zip(*parts, strict=True)]
            tokens = len(arrays[0]) if arrays else 0
            if not tokens:
                continue
            ids, weights, *candidates = arrays
            self._emit(
                RoutingTrace(
                    meta=self._meta,
                    ids_TLK=ids,
                    weights_TLK=weights,
                    request_T=np.full(tokens, self.requests, np.int32),
                    position_T=np.arange(tokens, dtype=np.int32),
                    category_T=np.full(tokens, batch.category, np.int32) if self._categories else None,
                    categories=self._categories,
                    candidate_ids_TLC=candidates[0] if candidates else None,
                    candidate_scores_TLC=candidates[1] if candidates else None,
                )
            )
            self.tokens += tokens
            self.requests += 1

    def _category(self) -> int:
        if self.category is None:
            return -1
        if self.category not in self._categories:
            known = ", ".join(self._categories) or "none"
            raise TraceError(f"must be among the categories: {known}", field="category", got=self.category)
        return self._categories.index(self.category)


def _floats(values: Any) -> Array:
    """A tensor as float32, or as float16 where it has 2 bytes a number: bfloat16 has fewer digits."""
    whole: Array = values.float().cpu().numpy()
    return whole.astype(np.float16) if values.element_size() == 2 else whole
