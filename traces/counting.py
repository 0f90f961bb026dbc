"""Counting a trace window by window: expert loads, shared neighbours, random batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from traces.base.arrays import Array, Ints
from traces.base.jit import jit
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

_BATCHES = 64  # of each size: their mean then varies by 1 % or less from seed to seed


class Count:
    """Loads, requests and shared neighbours of the windows seen so far."""

    def __init__(self, meta: TraceMeta) -> None:
        shape = (len(meta.layers), meta.experts)
        self.load_LE = np.zeros(shape, np.int64)
        self.tokens = self.requests = 0
        self._top_k = meta.top_k
        self._pairs = 0
        self._shared_L = np.zeros(shape[0], np.int64)
        self._last_token_LE = np.full(shape, -2, np.int64)
        self._last_request = self._last_position = -2

    def add(self, window: RoutingTrace) -> None:
        """Count the next window of the trace."""
        request_T, position_T = window.request_T, window.position_T
        same_T = np.diff(request_T, prepend=np.int32(self._last_request)) == 0
        follows_T = same_T & (np.diff(position_T, prepend=np.int32(self._last_position)) == 1)
        _add_neighbours(
            window.ids_TLK, follows_T, self.tokens, self.load_LE, self._last_token_LE, self._shared_L
        )
        self.tokens += window.tokens
        self.requests += window.tokens - int(same_T.sum())
        self._pairs += int(follows_T.sum())
        self._last_request, self._last_position = int(request_T[-1]), int(position_T[-1])

    def overlap(self) -> list[float] | None:
        """Share of experts that two neighbouring tokens have in common, by layer."""
        if self._pairs == 0:
            return None
        shares: list[float] = (self._shared_L / (self._pairs * self._top_k)).tolist()
        return shares


class Sample:
    """Random tokens, picked up as their windows pass: 64 batches of each size that the trace can fill."""

    def __init__(self, tokens: int, sizes: Sequence[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._sizes = [size for size in sizes if size <= tokens]
        draws = [rng.choice(tokens, size, replace=False) for size in self._sizes for _ in range(_BATCHES)]
        chosen = np.concatenate([np.empty(0, np.int64), *draws])
        self._order = np.argsort(chosen, kind="stable")
        self._sorted = chosen[self._order]
        self._rows: list[Array] = []

    def add(self, window: RoutingTrace, first_token: int) -> None:
        """Keep what was drawn of the window that begins at ``first_token``."""
        first, last = np.searchsorted(self._sorted, [first_token, first_token + window.tokens])
        self._rows.append(window.ids_TLK[self._sorted[first:last] - first_token])

    def batches(self) -> Iterator[Array]:
        """For each size, ids [batches, tokens, L, K]."""
        if not self._sizes:
            return
        gathered = np.concatenate(self._rows)
        drawn = np.empty_like(gathered)
        drawn[self._order] = gathered
        start = 0
        for size in self._sizes:
            stop = start + _BATCHES * size
            yield drawn[start:stop].reshape(_BATCHES, size, *drawn.shape[1:])
            start = stop


def batch_loads(ids_BTLK: Array, experts: int) -> Ints:
    """Assignments of each expert in each batch, int64 [B, L, E]."""
    batches, tokens, layers, chosen = ids_BTLK.shape
    load_BLE = np.zeros((batches, layers, experts), np.int64)
    batch_T = np.repeat(np.arange(batches), tokens)
    add_loads(ids_BTLK.reshape(-1, layers, chosen), batch_T, load_BLE)
    return load_BLE


@jit
def add_loads(ids_TLK: Array, group_T: Ints, load_GLE: Ints) -> None:
    """Count each assignment for its token's group; group -1 is the last."""
    tokens, layers, chosen = ids_TLK.shape
    for t in range(tokens):
        load_LE = load_GLE[group_T[t]]
        for layer in range(layers):
            for k in range(chosen):
                load_LE[layer, ids_TLK[t, layer, k]] += 1


@jit
def _add_neighbours(
    ids_TLK: Array,
    follows_T: Array,
    first_token: int,
    load_LE: Ints,
    last_token_LE: Ints,
    shared_L: Ints,
) -> None:
    """Count assignments, and those whose expert the token before chose too where ``follows_T``."""
    tokens, layers, chosen = ids_TLK.shape
    for t in range(tokens):
        token = first_token + t
        before = token - 1 if follows_T[t] else -1
        for layer in range(layers):
            shared = 0
            for k in range(chosen):
                expert = ids_TLK[t, layer, k]
                load_LE[layer, expert] += 1
                shared += last_token_LE[layer, expert] == before
                last_token_LE[layer, expert] = token
            shared_L[layer] += shared
