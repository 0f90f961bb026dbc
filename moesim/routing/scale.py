"""Gate weights of experts that a router did not choose, and of fewer than it chose.

Axes: T tokens, K experts per token, C candidates per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from traces.base.jit import jit


def renormalised(
    before_TK: npt.NDArray[np.int16], weights_TK: npt.NDArray[np.float32], after_TK: npt.NDArray[np.int16]
) -> npt.NDArray[np.float32]:
    """The weights of each token's experts, scaled to the sum that they had before, place by place.

    >>> before_TK, after_TK = np.array([[4, 2]], np.int16), np.array([[4, -1]], np.int16)
    >>> renormalised(before_TK, np.array([[0.5, 0.25]], np.float32), after_TK)
    array([[0.75, 0.25]], dtype=float32)
    """
    scaled_TK = weights_TK.copy()
    _renormalise(before_TK, after_TK, scaled_TK)
    return scaled_TK


@jit
def _renormalise(before_TK: Any, after_TK: Any, weights_TK: Any) -> None:
    T, K = before_TK.shape
    for token in range(T):
        before = after = np.float32(0.0)
        for place in range(K):
            if before_TK[token, place] >= 0:
                before += weights_TK[token, place]
            if after_TK[token, place] >= 0:
                after += weights_TK[token, place]
        if after == before or after == 0:
            continue
        for place in range(K):
            if after_TK[token, place] >= 0:
                weights_TK[token, place] *= before / after


@jit
def token_scale(token: int, ids_TK: Any, weights_TK: Any, ids_TC: Any, scores_TC: Any) -> Any:
    """How many times its score a token's expert weighs: the sum of its weights over that of its scores.

    1 where the scores of all of its experts are 0 or unknown.

    >>> ids_TC, scores_TC = np.array([[7, 3, 5]], np.int16), np.array([[0.5, 0.25, 0.25]], np.float32)
    >>> ids_TK, weights_TK = np.array([[7, 3]], np.int16), np.array([[0.6, 0.3]], np.float32)
    >>> round(token_scale(0, ids_TK, weights_TK, ids_TC, scores_TC), 3)
    1.2
    """
    C = ids_TC.shape[1]
    weight = score = np.float32(0.0)
    c = 0
    for place in range(ids_TK.shape[1]):
        if ids_TK[token, place] < 0:
            continue
        # Chosen experts mostly stand in the order of candidates, so that the next one is looked at first.
        for _ in range(C):
            found = c
            c = c + 1 if c + 1 < C else 0
            if ids_TC[token, found] == ids_TK[token, place]:
                weight += weights_TK[token, place]
                score += scores_TC[token, found]
                break
    return weight / score if score > 0 else np.float32(1.0)
