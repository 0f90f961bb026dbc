"""Kinds of tokens, found by the experts that they choose: a mixture, fitted by hard assignment.

In topic c a token's expert in layer l is e with probability p_cle, so a token that chose experts e_lk has
the log-likelihood ln π_c + Σ_lk ln p_cle. Tokens go to their likeliest topic and probabilities are counted
anew, in turns (classification EM: Celeux and Govaert 1992).

Axes: T tokens, L MoE layers, K experts per token, E experts, C topics.
"""

from __future__ import annotations

import numpy as np

from traces.base.arrays import Array, Floats, Ints
from traces.base.jit import jit
from traces.counting import add_loads

PRIOR = 4.0
"""Tokens of the whole trace that every topic is counted with, so that no expert is impossible in one."""

_TURNS = 20


def find_topics(ids_TLK: Array, experts: int, topics: int, seed: int = 0) -> Ints:
    """The topic of each token, int64 [T], from 0 to ``topics`` − 1; some topics may stay empty.

    Args:
        ids_TLK: the chosen experts.
        topics: at most T.
        seed: chooses the tokens that the topics begin with.
    """
    tokens = len(ids_TLK)
    first_C = np.random.default_rng(seed).choice(tokens, topics, replace=False)
    topic_T = np.full(tokens, -1, np.int64)
    topic_T[first_C] = np.arange(topics)
    for _ in range(_TURNS):
        # [L, E, C], so that one expert's logarithms for all topics lie together.
        log_LEC = np.ascontiguousarray(
            np.log(topic_shares(ids_TLK, topic_T, experts, topics)).transpose(1, 2, 0)
        )
        size_C = np.bincount(topic_T[topic_T >= 0], minlength=topics)
        before_T = topic_T
        topic_T = np.empty(tokens, np.int64)
        _assign(ids_TLK, log_LEC, np.log(size_C + 1.0), topic_T)
        if np.array_equal(topic_T, before_T):
            break
    return topic_T


def topic_shares(ids_TLK: Array, topic_T: Ints, experts: int, topics: int) -> Floats:
    """Share of the tokens of a topic that chose an expert, float64 [C, L, E]; above 0.

    Counted with ``PRIOR`` tokens of the whole trace; tokens of topic −1 count in the whole only.
    """
    tokens, layers, _ = ids_TLK.shape
    count_CLE = np.zeros((topics + 1, layers, experts), np.int64)
    add_loads(ids_TLK, topic_T, count_CLE)
    # Half a token for an expert that was never seen.
    whole_LE = np.maximum(count_CLE.sum(axis=0), 0.5) / tokens
    size_C = np.bincount(topic_T + 1, minlength=topics + 1)[1:]
    return np.asarray((count_CLE[:-1] + PRIOR * whole_LE) / (size_C[:, None, None] + PRIOR))


@jit
def _assign(ids_TLK: Array, log_LEC: Array, log_C: Floats, topic_T: Ints) -> None:
    """Each token's likeliest topic, ties to the lowest."""
    tokens, layers, chosen = ids_TLK.shape
    score_C = np.empty(log_C.size)
    for t in range(tokens):
        score_C[:] = log_C
        for layer in range(layers):
            for k in range(chosen):
                row_C = log_LEC[layer, ids_TLK[t, layer, k]]
                for c in range(score_C.size):
                    score_C[c] += row_C[c]
        topic_T[t] = np.argmax(score_C)
