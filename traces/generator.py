"""A generator of routing with the structure of a recorded trace, for any model's shape.

The model, whose parameters :mod:`traces.fitting` finds in a trace:

* Every token has a *topic*, a kind of token, common to all layers. A topic gives each expert of each layer
  a weight: so experts of a layer meet, and layers depend on each other.
* A request draws its topics with the shares of one of the recorded *requests*, and is of its category. With
  probability ``stay`` a token takes the topic of the one before instead, with probability ``recall`` that of
  one some tokens back, at a geometric distance with a mean of ``passage_tokens``.
* A token chooses the K experts with the largest w_e / x_e, x_e ~ Exp(1), which is a draw without replacement
  with probabilities in proportion to w (see :mod:`traces.synthesis`).
* In each layer of a request, the *noise* x_e of some experts is the same in all tokens, that of others in all
  of a passage, whose length is geometric with a mean of ``passage_tokens``; that of the rest is kept from one
  token to the next with some probability. So the tokens of a request are alike, the nearer the more, while
  each alone has the distribution that its topic gives it.
* Gate weights are the chosen w_e / x_e to the power ``sharpness``, normalised.

Axes: T tokens, L MoE layers, K experts per token, E experts, C topics, N recorded requests, R requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from traces.base.arrays import Array, Floats, Ints
from traces.base.errors import TraceError
from traces.base.jit import jit
from traces.base.memory import require_memory
from traces.draws import STEP, choose, mix64, uniform40
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

MAX_LOG_WEIGHT = 30.0
"""Of a topic's weight for an expert: so stays e^30 far inside float64."""


@dataclass(frozen=True, eq=False)
class Generator:
    """A model of routing, fitted to a trace.

    Attributes:
        meta: shape and origin of what is generated; ``candidates`` are generated too.
        log_weight_CLE: float64, logarithm of what a topic weighs an expert with.
        topics_NC: float64, shares of the topics in recorded requests; rows sum to 1.
        category_N: int64, index into ``categories``, −1 = unknown.
        categories: names.
        stay: probability that a token takes the topic of the one before.
        recall: probability that it takes that of one farther back; at most 1 − ``stay``.
        passage_tokens: mean length of a passage, and mean distance of what is recalled, at least 1.
        lasting_L: float64, probability that an expert's noise lasts for a request.
        passing_L: float64, that it lasts for a passage, where it does not for the request.
        kept_L: float64, that it is that of the token before, where it is neither.
        sharpness_L: float64, exponent of the gate weights.
        gate_sum_L: float64, sum of a token's gate weights.
        score_level_L: float64, mean logarithm of a token's best candidate's score, or its mean if scores are
            logits.
        score_is_logit: whether candidates' scores may be negative.
        groups, top_groups: expert groups, and from how many of them a token may choose.

    Raises:
        TraceError: an array has another shape, or a number is outside its range.
    """

    meta: TraceMeta
    log_weight_CLE: Floats
    topics_NC: Floats
    category_N: Ints
    categories: tuple[str, ...]
    stay: float
    recall: float
    passage_tokens: float
    lasting_L: Floats
    passing_L: Floats
    kept_L: Floats
    sharpness_L: Floats
    gate_sum_L: Floats
    score_level_L: Floats
    score_is_logit: bool = True
    groups: int = 1
    top_groups: int = 1

    def __post_init__(self) -> None:
        layers, experts = len(self.meta.layers), self.meta.experts
        topics, requests = len(self.log_weight_CLE), len(self.topics_NC)
        shapes = {"C": topics, "L": layers, "E": experts, "N": requests}
        ranges = {
            "log_weight_CLE": (-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT),
            "topics_NC": (0, 1),
            "category_N": (-1, len(self.categories) - 1),
            "lasting_L": (0, 1),
            "passing_L": (0, 1),
            "kept_L": (0, 1),
            "sharpness_L": (0, 100),
            "gate_sum_L": (0, 1000),
            "score_level_L": (-1000, 1000),
        }
        for name, (low, high) in ranges.items():
            array = getattr(self, name)
            shape = tuple(shapes[axis] for axis in name.rsplit("_", 1)[1])
            if array.shape != shape or not (topics and requests):
                raise TraceError(
                    f"must have shape {shape}, with a topic and a request", field=name, got=array.shape
                )
            wrong = ~((array >= low) & (array <= high))
            if wrong.any():
                raise TraceError(f"must be between {low:g} and {high:g}", field=name, got=array[wrong][0])
        if not np.allclose(self.topics_NC.sum(axis=1), 1.0, atol=1e-3):
            raise TraceError("rows must sum to 1", field="topics_NC")
        for name, most in (("stay", 1.0), ("recall", 1.0 - self.stay)):
            if not 0 <= getattr(self, name) <= most:
                raise TraceError(f"must be between 0 and {most:g}", field=name, got=getattr(self, name))
        if not 1 <= self.passage_tokens <= 1e6:
            raise TraceError("must be between 1 and 1e+06", field="passage_tokens", got=self.passage_tokens)
        if self.groups < 1 or experts % self.groups:
            raise TraceError(f"must divide {experts} experts", field="groups", got=self.groups)
        if not 1 <= self.top_groups <= self.groups:
            raise TraceError(f"must be between 1 and {self.groups}", field="top_groups", got=self.top_groups)
        if self.meta.top_k > self.reachable:
            raise TraceError(
                f"must be at most {self.reachable}, the experts in reach", field="top_k", got=self.meta.top_k
            )

    @property
    def reachable(self) -> int:
        """Experts that a token may choose among."""
        return self.meta.experts // self.groups * self.top_groups

    def scaled(
        self,
        layers: tuple[int, ...],
        experts: int,
        top_k: int,
        groups: int = 1,
        top_groups: int = 1,
        *,
        model: str = "",
    ) -> Generator:
        """The same structure in another model's shape.

        Layers are stretched: of L fitted ones, layer i of L' takes the parameters of layer ⌊i L / L'⌋. A
        layer with another number of experts keeps the distribution of popularity, interpolated and dealt to
        its experts at random; each takes the topics that it is chosen in from the fitted expert with the
        nearest popularity, so that neighbours in popularity also keep company.

        Args:
            layers: true indices of the MoE layers.
            model: the new name; by default one that tells the fitted model and the shape.

        Raises:
            TraceError: the shape is impossible.
        """
        fitted, count = len(self.meta.layers), len(layers)
        source_L = np.arange(count) * fitted // max(count, 1)
        # As many beyond the chosen ones as there were, if there are so many.
        more = max(0, self.meta.candidates - self.meta.top_k)
        candidates = min(experts // max(groups, 1) * top_groups, top_k + more)
        old = (self.meta.layers, self.meta.experts, self.meta.top_k)
        name, origin = model or self.meta.model, self.meta.origin
        if model or old != (layers, experts, top_k):
            shape = model or f"{count} × {experts} top-{top_k}"
            name = model or f"like {name or 'the fitted'}, {shape}"
            origin = f"{origin}; in the shape of {shape}" if origin else f"in the shape of {shape}"
        meta = replace(
            self.meta,
            model=name,
            origin=origin,
            experts=experts,
            top_k=top_k,
            layers=layers,
            candidates=candidates if more and candidates > top_k else 0,
        )
        per_layer = {
            field.name: getattr(self, field.name)[source_L]
            for field in fields(self)
            if field.name.endswith("_L")
        }
        log_weight_CLE = self.log_weight_CLE[:, source_L]
        if experts != self.meta.experts:
            log_weight_CLE = self._dealt(log_weight_CLE, experts)
        return replace(
            self, meta=meta, log_weight_CLE=log_weight_CLE, groups=groups, top_groups=top_groups, **per_layer
        )

    def _dealt(self, log_weight_CLE: Floats, experts: int) -> Floats:
        """The weights of another number of experts."""
        topics, layers, fitted = log_weight_CLE.shape
        mean_LE = np.einsum("c,cle->le", self.topics_NC.mean(axis=0), log_weight_CLE)
        rng = np.random.default_rng(0)
        middle_E = (np.arange(experts) + 0.5) / experts
        dealt = np.empty((topics, layers, experts))
        for layer, mean_E in enumerate(mean_LE):
            ascending = np.argsort(mean_E, kind="stable")
            popularity_E = np.interp(middle_E, (np.arange(fitted) + 0.5) / fitted, mean_E[ascending])
            like_E = ascending[(middle_E * fitted).astype(np.int64)]
            topical_CE = log_weight_CLE[:, layer] - mean_E
            dealt[:, layer] = (popularity_E + topical_CE[:, like_E])[:, rng.permutation(experts)]
        return np.clip(dealt, -MAX_LOG_WEIGHT, MAX_LOG_WEIGHT)


def generate(generator: Generator, requests: int, tokens_per_request: int, seed: int = 0) -> RoutingTrace:
    """A trace of ``requests`` requests; equal arguments give equal traces.

    Weights are float16, descending within a token; candidates, where the generator has them, come best
    first with float32 scores.

    Raises:
        TraceError: a number is below 1, or the trace would not fit into memory.
    """
    for name, value in (("requests", requests), ("tokens", tokens_per_request)):
        if value < 1:
            raise TraceError("must be at least 1", field=name, got=value)
    meta = generator.meta
    layers, top_k, drawn = len(meta.layers), meta.top_k, meta.candidates or meta.top_k
    tokens = requests * tokens_per_request
    require_memory(tokens * layers * drawn * 16, f"a generated trace of {tokens} tokens", error=TraceError)
    order_seed, noise_seed = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(order_seed)
    recorded_R = rng.integers(len(generator.topics_NC), size=requests)
    topic_RT = _topics(generator, recorded_R, tokens_per_request, rng)
    turns_RT = rng.random(topic_RT.shape) < 1 / generator.passage_tokens
    stream_RL = noise_seed.generate_state(requests * layers, np.uint64).reshape(requests, layers)
    ids_TLC = np.empty((tokens, layers, drawn), meta.ids_dtype)
    share_TLC = np.empty(ids_TLC.shape, np.float32)
    _draw(
        np.exp(generator.log_weight_CLE),
        topic_RT,
        turns_RT,
        stream_RL,
        generator.lasting_L,
        generator.passing_L,
        generator.kept_L,
        generator.groups,
        generator.top_groups,
        ids_TLC,
        share_TLC,
    )
    # A share may be too small for float32.
    log_TLC = np.log(np.maximum(share_TLC, 1e-30)) * generator.sharpness_L[:, None].astype(np.float32)
    log_TLC -= log_TLC[:, :, :1]
    power_TLK = np.exp(log_TLC[:, :, :top_k])
    weights_TLK = power_TLK / power_TLK.sum(axis=2, keepdims=True) * generator.gate_sum_L[:, None]
    known = bool(generator.categories)
    category_R = generator.category_N[recorded_R].astype(np.int32)
    optional: dict[str, Any] = {}
    if meta.candidates:
        log_TLC += generator.score_level_L[:, None].astype(np.float32)
        optional["candidate_ids_TLC"] = ids_TLC
        optional["candidate_scores_TLC"] = log_TLC if generator.score_is_logit else np.exp(log_TLC)
    return RoutingTrace(
        meta=replace(meta, origin=f"generated, seed {seed}; {meta.origin}"),
        ids_TLK=np.ascontiguousarray(ids_TLC[:, :, :top_k]),
        weights_TLK=weights_TLK.astype(np.float16),
        request_T=np.repeat(np.arange(requests, dtype=np.int32), tokens_per_request),
        position_T=np.tile(np.arange(tokens_per_request, dtype=np.int32), requests),
        category_T=np.repeat(category_R, tokens_per_request) if known else None,
        categories=generator.categories,
        **optional,
    )


def _topics(generator: Generator, recorded_R: Array, tokens: int, rng: np.random.Generator) -> Ints:
    """The topic of every token, int64 [R, T of a request]."""
    upto_NC = np.cumsum(generator.topics_NC, axis=1)
    topic_RT = np.stack(
        [np.searchsorted(upto_NC[n], rng.random(tokens) * upto_NC[n, -1], side="right") for n in recorded_R]
    )
    lot_RT = rng.random(topic_RT.shape)
    back_RT = rng.geometric(1 / generator.passage_tokens, topic_RT.shape)
    back_RT[lot_RT < generator.stay] = 1
    back_RT[lot_RT >= generator.stay + generator.recall] = 0
    _take_back(topic_RT, back_RT)
    return topic_RT


@jit
def _take_back(topic_RT: Array, back_RT: Array) -> None:
    """Each token's topic becomes that of the one so many before it, where its request has begun by then."""
    requests, tokens = topic_RT.shape
    for request in range(requests):
        for t in range(tokens):
            if back_RT[request, t] <= t:
                topic_RT[request, t] = topic_RT[request, t - back_RT[request, t]]


@jit
def _draw(
    weight_CLE: Floats,
    topic_RT: Array,
    turns_RT: Array,
    stream_RL: Array,
    lasting_L: Floats,
    passing_L: Floats,
    kept_L: Floats,
    groups: int,
    top_groups: int,
    ids_TLC: Array,
    share_TLC: Array,
) -> None:
    """Fill ids and normalised scores, best first; each (request, layer) draws from a stream of its own."""
    _, layers, experts = weight_CLE.shape
    requests, tokens = topic_RT.shape
    score_E, noise_E = np.empty(experts), np.empty(experts)
    lasts_E, passes_E = np.empty(experts, np.bool_), np.empty(experts, np.bool_)
    for request in range(requests):
        for layer in range(layers):
            state = stream_RL[request, layer]
            lasts_below = np.uint64(lasting_L[layer] * 2.0**24)
            passes_below = np.uint64(passing_L[layer] * 2.0**24)
            kept_below = np.uint64(kept_L[layer] * 2.0**24)
            for position in range(tokens):
                begins = position == 0
                turns = begins or turns_RT[request, position]
                weight_E = weight_CLE[topic_RT[request, position], layer]
                for expert in range(experts):
                    # One draw gives 24 bits that decide how long noise lasts, and 40 bits of new noise.
                    state += STEP
                    bits = mix64(state)
                    lot = bits >> np.uint64(40)
                    if turns:
                        if begins:
                            state += STEP
                            lasts_E[expert] = (mix64(state) >> np.uint64(40)) < lasts_below
                        passes_E[expert] = lot < passes_below
                        kept = lasts_E[expert] and not begins
                    else:
                        kept = lasts_E[expert] or passes_E[expert] or lot < kept_below
                    if not kept:
                        noise_E[expert] = -math.log(uniform40(bits))
                    score_E[expert] = weight_E[expert] / noise_E[expert]
                token = request * tokens + position
                choose(score_E, groups, top_groups, ids_TLC[token, layer], share_TLC[token, layer])
