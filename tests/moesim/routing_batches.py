"""Small random batches with all that a policy may ask for."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

from moesim.routing.candidates import candidates
from moesim.routing.policy import NO_EXPERT, Batch, Held

GPUS_PER_NODE = 2


@st.composite
def full_batches(draw: st.DrawFn, *, replicas: bool = False) -> Batch:
    """Places without an expert, ranks without tokens, tied scores, unequal GPUs; maybe replicas."""
    ranks = draw(st.integers(1, 4))
    experts = draw(st.integers(2, 7))
    top_k = draw(st.integers(1, min(3, experts - 1)))
    tokens_G = draw(st.lists(st.integers(0, 7), min_size=ranks, max_size=ranks))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens, C = sum(tokens_G), draw(st.integers(top_k + 1, experts))
    ids_TC = np.array([chance.permutation(experts)[:C] for _ in range(tokens)], np.int16).reshape(tokens, C)
    scores_TC = chance.choice([0.0, 0.1, 0.2, 0.4, 0.8], size=(tokens, C)).astype(np.float32)
    known = candidates(ids_TC, scores_TC, logits=False)
    ids_TK = known.ids_TC[:, :top_k].copy()
    ids_TK[chance.random(ids_TK.shape) < 0.1] = NO_EXPERT
    weights_TK = 2 * known.scores_TC[:, :top_k]
    gpus_EG = np.zeros((experts, ranks), bool)
    gpus_EG[np.arange(experts), chance.integers(0, ranks, experts)] = True
    if replicas:
        gpus_EG |= chance.random(gpus_EG.shape) < 0.3
    node_G = np.arange(ranks, dtype=np.int32) // np.int32(GPUS_PER_NODE)
    return Batch(
        ids_TK,
        np.ascontiguousarray(weights_TK, np.float32),
        np.cumsum([0, *tokens_G], dtype=np.int64),
        experts,
        known,
        Held(gpus_EG, node_G),
        draw=draw(st.integers(0, 3)),
    )


def bounds_of(batch: Batch, scope: str) -> list[tuple[int, int]]:
    """First and last row of what is limited together."""
    if scope == "global":
        return [(0, len(batch.ids_TK))]
    return list(itertools.pairwise(batch.offsets_G.tolist()))
