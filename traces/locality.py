"""How alike the tokens of a request are: experts shared over a distance, and the union over a stretch.

Axes: T tokens, L MoE layers, K experts per token, E experts, D distances, N lengths of a stretch.
"""

from __future__ import annotations

import numpy as np

from traces.base.arrays import Array, Floats
from traces.base.jit import jit
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

LAGS = (1, 2, 4, 8, 16, 32, 64, 128)
STRETCHES = LAGS


class Locality:
    """Counts over the windows of a trace that were added so far.

    Tokens follow each other where they are of one request and their positions have no gap.
    """

    def __init__(self, meta: TraceMeta) -> None:
        layers, chosen = len(meta.layers), meta.top_k
        self._chosen, self._experts = chosen, meta.experts
        self._lag_D, self._size_N = np.array(LAGS), np.array(STRETCHES)
        self._tokens = self._run = 0
        self._last_request = self._last_position = -2
        self._recent_DLK = np.zeros((max(LAGS), layers, chosen), meta.ids_dtype)
        # Longer ago than any stretch.
        self._last_LE = np.full((layers, meta.experts), -2 * max(STRETCHES), np.int64)
        self._shared_DL = np.zeros((len(LAGS), layers), np.int64)
        self._pairs_D = np.zeros(len(LAGS), np.int64)
        self._union_NL = np.zeros((len(STRETCHES), layers), np.int64)
        self._stretches_N = np.zeros(len(STRETCHES), np.int64)

    def add(self, window: RoutingTrace) -> None:
        """Count the next window of the trace."""
        request_T, position_T = window.request_T, window.position_T
        same_T = np.diff(request_T, prepend=np.int32(self._last_request)) == 0
        follows_T = same_T & (np.diff(position_T, prepend=np.int32(self._last_position)) == 1)
        self._run = _add_window(
            window.ids_TLK,
            follows_T,
            self._tokens,
            self._run,
            self._lag_D,
            self._size_N,
            self._recent_DLK,
            self._last_LE,
            self._shared_DL,
            self._pairs_D,
            self._union_NL,
            self._stretches_N,
        )
        self._tokens += window.tokens
        self._last_request, self._last_position = int(request_T[-1]), int(position_T[-1])

    def overlap_DL(self) -> Floats:
        """Share of a token's experts that the token ``LAGS`` positions before chose too; else NaN."""
        return _shares(self._shared_DL, self._pairs_D * self._chosen)

    def union_NL(self) -> Floats:
        """Share of all experts that some token of a stretch of ``STRETCHES`` tokens chose; else NaN."""
        return _shares(self._union_NL, self._stretches_N * self._experts)


def _shares(count_NL: Array, of_N: Array) -> Floats:
    share_NL: Floats = np.full(count_NL.shape, np.nan)
    return np.divide(count_NL, of_N[:, None], out=share_NL, where=of_N[:, None] > 0)


@jit
def _add_window(
    ids_TLK: Array,
    follows_T: Array,
    first_token: int,
    run: int,
    lag_D: Array,
    size_N: Array,
    recent_DLK: Array,
    last_LE: Array,
    shared_DL: Array,
    pairs_D: Array,
    union_NL: Array,
    stretches_N: Array,
) -> int:
    """Count one window; ``run`` is how many tokens without a gap end with the last one, and is returned."""
    tokens, layers, chosen = ids_TLK.shape
    sizes = size_N.size
    ages_N = np.zeros(sizes + 1, np.int64)
    for t in range(tokens):
        token = first_token + t
        run = run + 1 if follows_T[t] else 1
        for d in range(lag_D.size):
            if run <= lag_D[d]:
                continue
            pairs_D[d] += 1
            before_LK = recent_DLK[(token - lag_D[d]) % len(recent_DLK)]
            for layer in range(layers):
                for k in range(chosen):
                    for j in range(chosen):
                        shared_DL[d, layer] += ids_TLK[t, layer, k] == before_LK[layer, j]
        for n in range(sizes):
            stretches_N[n] += run >= size_N[n]
        for layer in range(layers):
            for k in range(chosen):
                last_LE[layer, ids_TLK[t, layer, k]] = token
            # An expert chosen less than n tokens ago is in the union of the last n.
            ages_N[:] = 0
            for last in last_LE[layer]:
                n = 0
                while n < sizes and token - last >= size_N[n]:
                    n += 1
                ages_N[n] += 1
            within = 0
            for n in range(sizes):
                within += ages_N[n]
                if run >= size_N[n]:
                    union_NL[n, layer] += within
        recent_DLK[token % len(recent_DLK)] = ids_TLK[t]
    return run
