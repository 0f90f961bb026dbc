"""Scores of the experts that a token might have visited, in one form whatever the trace holds.

Axes: T tokens, L MoE layers, K experts per token, C candidates per token, E experts, N tokens of all layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.policy import Candidates
from traces.base.jit import jit

_SOME = 64
"""Tokens that tell a sigmoid from a softmax, spread over the trace."""


def are_logits(scores_TLC: NDArray[np.floating]) -> bool:
    """Whether a trace's scores are logits: some are no probability, softmax or sigmoid."""
    return bool(scores_TLC.size and (scores_TLC.min() < 0 or scores_TLC.max() > 1))


def are_of_sigmoids(
    ids_TLK: NDArray[Any],
    weights_TLK: NDArray[np.floating] | None,
    candidate_ids_TLC: NDArray[Any],
    logits_TLC: NDArray[np.floating],
) -> bool:
    """Whether the gate weights say that the router takes a sigmoid of each logit, and no softmax.

    A softmax's weights are among each other as exp(logit), those of DeepSeek-V3 (arXiv 2412.19437, equations
    13 to 15) as its sigmoid. Told by a few tokens, whichever is nearer; a softmax where there are no weights,
    and where K is 1.

    Logits 0 and ln 3: their sigmoids 1/2 and 3/4 are 2/5 and 3/5 of their sum.

    >>> ids, logits = np.array([[[0, 1]]]), np.log(np.array([[[1.0, 3.0]]]))
    >>> are_of_sigmoids(ids, np.array([[[0.4, 0.6]]]), ids, logits)
    True
    >>> are_of_sigmoids(ids, np.array([[[0.25, 0.75]]]), ids, logits)
    False
    """
    if weights_TLK is None:
        return False
    some = slice(None, None, -(-len(ids_TLK) // _SOME))
    ids_NK, ids_NC, logits_NC, weights_NK = (
        array[some].reshape(-1, array.shape[2])
        for array in (ids_TLK, candidate_ids_TLC, logits_TLC, weights_TLK)
    )
    logit_NE = np.zeros((len(ids_NC), int(ids_NC.max()) + 1))
    np.put_along_axis(logit_NE, ids_NC.astype(np.intp), logits_NC, axis=1)
    logit_NK = np.take_along_axis(logit_NE, ids_NK.astype(np.intp), axis=1)

    def miss(made_NK: NDArray[np.float64]) -> float:
        """How far the shares of these weights are from those that the trace has."""
        sum_N1 = weights_NK.sum(axis=1, keepdims=True, dtype=np.float64)
        made_N1 = np.maximum(made_NK.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return float(np.abs(made_NK / made_N1 * sum_N1 - weights_NK).sum())

    softmax = miss(np.exp(logit_NK - logit_NK.max(axis=1, keepdims=True)))
    # Nearer by more than rounding.
    return miss(sigmoids(logit_NK)) < 0.99 * softmax


def sigmoids(logits_TC: NDArray[Any]) -> NDArray[Any]:
    """1 / (1 + exp(−logit)), in the dtype of the logits."""
    from scipy.special import expit  # here: an executor reads no logits of this kind, and may lack scipy

    found: NDArray[Any] = expit(logits_TC)
    return found


def candidates(ids_TC: NDArray[np.int16], scores_TC: NDArray[np.float32], *, logits: bool) -> Candidates:
    """Candidates as policies see them: the best first, with shares that sum to 1.

    Logits go through a softmax over the candidates; other scores are divided by their sum. Equal scores keep
    their order.

    >>> found = candidates(np.array([[4, 7]], np.int16), np.array([[0.2, 0.6]], np.float32), logits=False)
    >>> found.ids_TC.tolist(), found.scores_TC.round(3).tolist()
    ([[7, 4]], [[0.75, 0.25]])
    """
    sorted_ids_TC, shares_TC = np.empty(ids_TC.shape, np.int16), np.empty(ids_TC.shape, np.float32)
    _sort(ids_TC, scores_TC, logits, sorted_ids_TC, shares_TC)
    return Candidates(sorted_ids_TC, shares_TC)


@jit
def _sort(ids_TC: Any, scores_TC: Any, logits: bool, sorted_ids_TC: Any, shares_TC: Any) -> None:
    T, C = ids_TC.shape
    for token in range(T):
        sorted_C, shares_C = sorted_ids_TC[token], shares_TC[token]
        for place in range(C):
            # Mostly sorted already: insertion moves what is out of order.
            expert, score, hole = ids_TC[token, place], scores_TC[token, place], place
            while hole > 0 and shares_C[hole - 1] < score:
                sorted_C[hole], shares_C[hole] = sorted_C[hole - 1], shares_C[hole - 1]
                hole -= 1
            sorted_C[hole], shares_C[hole] = expert, score
        if logits:
            best = shares_C[0]
            for place in range(C):
                shares_C[place] = np.exp(shares_C[place] - best)
        total = np.float32(0.0)
        for place in range(C):
            total += shares_C[place]
        for place in range(C):
            shares_C[place] = shares_C[place] / total if total > 0 else np.float32(1.0 / C)
