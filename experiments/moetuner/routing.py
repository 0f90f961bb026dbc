"""Routing in which a token's experts depend on those of the layer before, and on each other.

The model: in each layer expert e has a popularity exp(skew · z_e), z_e standard normal, one expert of its own
layer as a mate, and each expert of the layer before a partner in this one, another for each. Each of a
token's two experts is the partner of the one before with probability ``follow``, and otherwise drawn by
popularity, another than the first (the Gumbel top-k trick, as in ``traces.synthesis``). Then the second
becomes the mate of the first with probability ``together``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.spec.model import Model
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

REQUESTS, TOKENS = 128, 256
"""Requests, and tokens of each; a placement sees the first half of the requests, a run the others."""


@dataclass(frozen=True)
class Dependence:
    """What is assumed of routing that is not public; see the module."""

    skew: float = 0.8
    follow: float = 0.5
    together: float = 0.0


def routing(model: Model, assumed: Dependence, seed: int = 0) -> RoutingTrace:
    """A trace of ``REQUESTS`` requests; without gate weights, the first expert counts as the largest."""
    experts, layers = model.experts.count, len(model.moe_layers)
    rng = np.random.default_rng(seed)
    row_T = np.arange(REQUESTS * TOKENS)
    ids_TLK = np.empty((len(row_T), layers, 2), np.uint8)
    for layer in range(layers):
        score_TE = assumed.skew * rng.standard_normal(experts) + rng.gumbel(size=(len(row_T), experts))
        partner_E, mate_E = rng.permutation(experts), _mates(rng.permutation(experts))
        if layer > 0:
            follows_TK = rng.random((len(row_T), 2)) < assumed.follow
            for k in (0, 1):
                # Above all that is drawn, and the first above the second.
                partner_T = partner_E[ids_TLK[:, layer - 1, k]]
                score_TE[row_T[follows_TK[:, k]], partner_T[follows_TK[:, k]]] = 1e6 - k
        ids_TLK[:, layer] = np.argsort(-score_TE, axis=1, kind="stable")[:, :2]
        with_mate_T = rng.random(len(row_T)) < assumed.together
        ids_TLK[with_mate_T, layer, 1] = mate_E[ids_TLK[with_mate_T, layer, 0]]
    return RoutingTrace(
        meta=TraceMeta(model.name, experts, 2, model.moe_layers, f"generated: {assumed}, seed {seed}", ""),
        ids_TLK=ids_TLK,
        weights_TLK=None,
        request_T=np.repeat(np.arange(REQUESTS, dtype=np.int32), TOKENS),
        position_T=np.tile(np.arange(TOKENS, dtype=np.int32), REQUESTS),
    )


def _mates(order_E: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The other of each two that stand together in ``order_E``, by expert."""
    mate_E = np.empty_like(order_E)
    mate_E[order_E] = order_E.reshape(-1, 2)[:, ::-1].ravel()
    return mate_E
