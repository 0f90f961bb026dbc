"""Routing with one parameter, in which the router's thoughts on all experts are known."""

from __future__ import annotations

import numpy as np

from moesim.spec.model import Model
from traces.generator import Generator, generate
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

SEQUENCE, REQUESTS = 512, 16
"""Tokens of a request, as published, and requests: 8K tokens."""


def routing(
    model: Model, skew: float, *, kept: float = 0.0, scores: bool = True, seed: int = 0
) -> RoutingTrace:
    """A trace of the generator with one topic: its weights are exp(skew · z), z standard normal.

    The draws are the same for every ``skew``, so that loads change with it smoothly, and whether there are
    ``scores`` or not.

    Args:
        kept: probability that a token's affinity to an expert is that of the token before.
        scores: whether all experts are candidates with scores, which takes longer.
    """
    experts, layers = model.experts.count, len(model.moe_layers)
    meta = TraceMeta(
        model.name,
        experts,
        model.experts.top_k,
        model.moe_layers,
        "one topic",
        "",
        candidates=experts if scores else 0,
    )
    ones_L, zeros_L = np.ones(layers), np.zeros(layers)
    generator = Generator(
        meta,
        log_weight_CLE=skew * np.random.default_rng(seed).standard_normal((1, layers, experts)),
        topics_NC=np.ones((1, 1)),
        category_N=np.array([-1]),
        categories=(),
        stay=0.0,
        recall=0.0,
        passage_tokens=float(REQUESTS * SEQUENCE),  # every passage is a request
        lasting_L=zeros_L,
        passing_L=zeros_L,
        kept_L=kept * ones_L,
        sharpness_L=ones_L,
        gate_sum_L=ones_L,
        score_level_L=zeros_L,
    )
    return generate(generator, REQUESTS, SEQUENCE, seed)
