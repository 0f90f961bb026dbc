"""A token's experts, best first."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from traces.base.jit import jit


def best_first(
    ids_TK: npt.NDArray[np.int16], weights_TK: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]:
    """The places of each token by weight, equal ones by place; places without an expert come last.

    Args:
        ids_TK: [T, K], −1 for none.
        weights_TK: [T, K], not negative where there is an expert.

    Returns:
        order_TK: int16 [T, K], places.
        weights_KT: float64 [K, T], the weights in that order; 0 where there is no expert.

    >>> order_TK, weights_KT = best_first(
    ...     np.array([[4, -1, 2]], np.int16), np.array([[0.25, 9, 0.75]], np.float32)
    ... )
    >>> order_TK.tolist(), weights_KT.ravel().tolist()
    ([[2, 0, 1]], [0.75, 0.25, 0.0])
    """
    order_TK = np.empty(ids_TK.shape, np.int16)
    weights_KT = np.empty(ids_TK.shape[::-1], np.float64)
    _best_first(ids_TK, weights_TK, order_TK, weights_KT)
    return order_TK, weights_KT


@jit
def _best_first(ids_TK: Any, weights_TK: Any, order_TK: Any, weights_KT: Any) -> None:
    T, K = ids_TK.shape
    for token in range(T):
        order_K = order_TK[token]
        for place in range(K):
            key = _key(ids_TK, weights_TK, token, place)
            k = place
            while k > 0 and _key(ids_TK, weights_TK, token, order_K[k - 1]) < key:
                order_K[k] = order_K[k - 1]
                k -= 1
            order_K[k] = place
        for k in range(K):
            weights_KT[k, token] = max(_key(ids_TK, weights_TK, token, order_K[k]), 0.0)


@jit
def _key(ids_TK: Any, weights_TK: Any, token: int, place: int) -> Any:
    return weights_TK[token, place] if ids_TK[token, place] >= 0 else np.float32(-1)
