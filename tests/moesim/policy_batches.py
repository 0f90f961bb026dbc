"""Small batches of any shape, for tests of routing policies."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from moesim.routing.policy import NO_EXPERT, Batch, Candidates, Held

WEIGHTS = [0.0, 0.125, 0.25, 0.5, 1.0]
"""Few values, so that ties are common, and sums are exact."""


@st.composite
def batches(draw: st.DrawFn, *, full: bool = False) -> Batch:
    """Any small batch: places without an expert, ranks without tokens, ties, replicas, unknown categories.

    Chosen experts are any of the candidates, as with a bias on the scores. ``full``: every place has an
    expert, and all experts are candidates.
    """
    experts = draw(st.integers(1, 8))
    top_k = draw(st.integers(1, min(experts, 4)))
    known = experts if full else draw(st.integers(top_k, experts))
    tokens_G = draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens, gpus = sum(tokens_G), len(tokens_G)
    ids_TC = np.array([chance.permutation(experts)[:known] for _ in range(tokens)], dtype=np.int16)
    ids_TC = ids_TC.reshape(tokens, known)
    score_TC = -np.sort(-chance.integers(0, 9, ids_TC.shape), axis=1) / 64
    place_TK = np.array([chance.permutation(known)[:top_k] for _ in range(tokens)], dtype=np.intp)
    ids_TK = np.take_along_axis(ids_TC, place_TK.reshape(tokens, top_k), axis=1)
    if not full:
        ids_TK[chance.random(ids_TK.shape) < 0.15] = NO_EXPERT
    gpus_EG = chance.random((experts, gpus)) < 0.3
    gpus_EG[np.arange(experts), chance.integers(0, gpus, experts)] = True
    return Batch(
        ids_TK,
        chance.choice(WEIGHTS, size=ids_TK.shape).astype(np.float32),
        np.cumsum([0, *tokens_G], dtype=np.int64),
        experts,
        candidates=Candidates(ids_TC, score_TC.astype(np.float32)),
        held=Held(gpus_EG, np.arange(gpus, dtype=np.int32) // 2),
        layer=1,
        draw=draw(st.integers(0, 9)),
        category_T=chance.integers(-1, 2, tokens).astype(np.int16),
        categories=("code", "chat"),
    )


def scores_of(batch: Batch, token: int) -> dict[int, float]:
    """The token's candidates and their scores, best first."""
    assert batch.candidates is not None
    ids, scores = batch.candidates.ids_TC[token], batch.candidates.scores_TC[token]
    return dict(zip(ids.tolist(), scores.tolist(), strict=True))


def chosen_of(batch: Batch, token: int) -> list[tuple[int, int, float]]:
    """(place, expert, weight) of what the token chose."""
    assert batch.weights_TK is not None
    ids, weights = batch.ids_TK[token].tolist(), batch.weights_TK[token].tolist()
    return [(k, e, w) for k, (e, w) in enumerate(zip(ids, weights, strict=True)) if e >= 0]


def weight_in(batch: Batch, token: int, expert: int) -> float:
    """What an expert weighs for a token: its own weight, or in proportion to its score."""
    chosen, scores = chosen_of(batch, token), scores_of(batch, token)
    own = [weight for _, e, weight in chosen if e == expert]
    if own:
        return own[0]
    weight, score = sum(w for _, _, w in chosen), sum(scores[e] for _, e, _ in chosen)
    return scores[expert] * (weight / score if score > 0 else 1.0)


def next_best(batch: Batch, token: int, allowed: set[int], free: list[int]) -> dict[int, int]:
    """Which allowed candidate that the token does not visit takes which of the free places, in order."""
    visits = {e for k, e, _ in chosen_of(batch, token) if k not in free}
    left = [e for e in scores_of(batch, token) if e in allowed and e not in visits]
    return dict(zip(free, left, strict=False))
