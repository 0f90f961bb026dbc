"""Scores of the experts that a token might have visited, in one form whatever the trace holds.

Axes: T tokens, K experts per token, C candidates per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.policy import Candidates
from traces.jit import jit


def are_logits(scores_TLC: NDArray[np.floating]) -> bool:
    """Whether a trace's scores are logits: some are no probability, softmax or sigmoid."""
    return bool(scores_TLC.size and (scores_TLC.min() < 0 or scores_TLC.max() > 1))


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
