"""Finding a generator's parameters in a trace: topics by counting, the rest by comparing what it generates.

Topics and the shares that requests have of them are counted. What makes tokens of a request alike can only be
measured by its effect, the experts that two of them share: far apart through noise that lasts for the request
alone, near each other also through what lasts for a passage, next to each other also through what is kept
from token to token. So these are corrected in turns until a generated trace has the overlaps of the given
one, and the weights of experts until it has their loads.

Axes: as in :mod:`traces.generator`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from traces.base.arrays import Array, Floats, Ints
from traces.base.errors import TraceError
from traces.generator import MAX_LOG_WEIGHT, Generator, generate
from traces.locality import LAGS, Locality
from traces.routing import RoutingTrace
from traces.statistics import expert_loads
from traces.topics import find_topics, topic_shares

TOPICS = 64
"""Most topics; a small trace has one for each ``_TOKENS_PER_TOPIC`` tokens."""

LEAST_TOKENS = 64
"""Of a trace that is fitted: as many as tell one topic."""

_TOKENS_PER_TOPIC = 64
_MOST_REQUESTS = 256  # whose topics are kept

_TURNS = 24
_MOST_TOPICAL = 0.45  # of tokens that stay at a topic, and as many that recall one
_GAIN = 4.0  # share of experts whose noise is shared, for each share of experts that overlap
_DRAWS = 1 << 23  # random numbers of a turn's trace
_REQUEST_TOKENS = 192  # at most, in a turn's trace: some more than the farthest distance
_REQUESTS = (8, 512)  # at least and at most, in a turn's trace

_NEAR, _MIDDLE, _FAR = 4, 16, 64  # distances at which overlaps are compared, beside 1
_PASSAGE_TOKENS = 10.0  # where the overlaps do not tell


@dataclass(frozen=True)
class _Overlaps:
    """Shares of experts that two tokens of a request have in common, by layer; NaN where unknown."""

    next_L: Floats
    near_L: Floats
    middle_L: Floats
    far_L: Floats

    @classmethod
    def of(cls, trace: RoutingTrace) -> _Overlaps:
        locality = Locality(trace.meta)
        for window in trace.windows():
            locality.add(window)
        at = dict(zip(LAGS, locality.overlap_DL(), strict=True))
        return cls(at[1], at[_NEAR], at[_MIDDLE], at[_FAR])

    def passage_tokens(self) -> float:
        """Mean length of a passage: what is above the far overlap decays as (1 − 1 / length)^distance.

        From ``_NEAR`` to ``_MIDDLE`` by a factor r, so the length is about (16 − 4) / ln r.
        """
        near = np.mean(self.near_L - self.far_L)
        middle = np.mean(self.middle_L - self.far_L)
        if not near > middle > 0:  # also where one is NaN
            return _PASSAGE_TOKENS
        return float(np.clip((_MIDDLE - _NEAR) / np.log(near / middle), 2.0, _FAR))


def fitted(trace: RoutingTrace, *, topics: int = TOPICS, seed: int = 0) -> Generator:
    """The generator whose traces are most like ``trace``.

    Args:
        topics: at most so many.
        seed: of the random numbers in the fit; equal arguments give equal generators.

    Raises:
        TraceError: the trace has fewer than ``LEAST_TOKENS`` tokens, or is too large for the memory of this
            machine.
    """
    if trace.tokens < LEAST_TOKENS:
        rule = f"is too short to be fitted: a generator is told from at least {LEAST_TOKENS} tokens"
        raise TraceError(rule, field="tokens", got=trace.tokens)
    count = max(1, min(topics, trace.tokens // _TOKENS_PER_TOPIC))
    topic_T = find_topics(trace.ids_TLK, trace.meta.experts, count, seed)
    used, topic_T = np.unique(topic_T, return_inverse=True)
    share_CLE = topic_shares(trace.ids_TLK, topic_T, trace.meta.experts, len(used))
    kept_N = _kept_requests(trace)
    topics_NC = _topics(trace, topic_T, len(used), kept_N)
    target = _Overlaps.of(trace)
    layers = len(trace.meta.layers)
    start = Generator(
        meta=replace(trace.meta, origin=_origin(trace), candidates=0),
        log_weight_CLE=np.log(_weights(share_CLE)),
        topics_NC=topics_NC,
        category_N=_categories(trace, kept_N),
        categories=trace.categories,
        stay=0.0,
        recall=0.0,
        passage_tokens=target.passage_tokens(),
        lasting_L=np.zeros(layers),
        passing_L=np.full(layers, 0.5),
        kept_L=np.full(layers, 0.3),
        sharpness_L=np.ones(layers),
        gate_sum_L=np.ones(layers),
        score_level_L=np.zeros(layers),
    )
    found = _corrected(start, trace, target, seed)
    return _with_gates(
        replace(found, meta=replace(found.meta, candidates=trace.meta.candidates)), trace, seed
    )


def _origin(trace: RoutingTrace) -> str:
    requests = len(trace.request_offsets) - 1
    fit = f"fitted to {trace.tokens} tokens of {requests} request{'s' if requests > 1 else ''}"
    return f"{fit}; {trace.meta.origin}" if trace.meta.origin else fit


def _weights(share: Floats) -> Floats:
    """Weights that give experts these shares of the tokens.

    Expert e is chosen before time τ with probability 1 − e^(−w_e τ), and about K of them by the time the
    last is chosen, in units of which time is counted.
    """
    return np.asarray(-np.log1p(-np.minimum(share, 0.9999)))


def _kept_requests(trace: RoutingTrace) -> Ints:
    """Indices of the requests that the generator knows, evenly spread over the trace."""
    requests = len(trace.request_offsets) - 1
    spread_N = np.linspace(0, requests - 1, min(requests, _MOST_REQUESTS))
    return np.asarray(spread_N.round(), np.int64)


def _topics(trace: RoutingTrace, topic_T: Ints, topics: int, kept_N: Ints) -> Floats:
    """Shares of the topics in the kept requests."""
    offsets = trace.request_offsets
    parts = [topic_T[offsets[n] : offsets[n + 1]] for n in kept_N]
    return np.stack([np.bincount(part, minlength=topics) / len(part) for part in parts])


def _categories(trace: RoutingTrace, kept_N: Ints) -> Ints:
    """The category that each kept request begins with."""
    if trace.category_T is None:
        return np.full(len(kept_N), -1, np.int64)
    return np.asarray(trace.category_T[trace.request_offsets[kept_N]], np.int64)


def _corrected(start: Generator, trace: RoutingTrace, target: _Overlaps, seed: int) -> Generator:
    """Turn by turn, generate a trace and correct what differs; corrections shrink, so that noise averages."""
    meta = trace.meta
    weight_LE = _weights(np.maximum(expert_loads(trace), 0.5) / trace.tokens)
    tokens = int(np.clip(np.median(np.diff(trace.request_offsets)), 1, _REQUEST_TOKENS))
    affordable = _DRAWS // (tokens * len(meta.layers) * meta.experts)
    requests = int(np.clip(affordable, *_REQUESTS))
    found = start
    for turn in range(_TURNS):
        made = generate(found, requests, tokens, seed + turn + 1)
        has = _Overlaps.of(made)
        step = min(1.0, 4.0 / (turn + 1.0))
        made_LE = _weights(np.maximum(expert_loads(made), 0.5) / made.tokens)
        log_weight_CLE = found.log_weight_CLE + step * np.clip(np.log(weight_LE / made_LE), -1.0, 1.0)
        more_near_L = target.near_L - target.far_L - (has.near_L - has.far_L)
        more_next_L = target.next_L - target.near_L - (has.next_L - has.near_L)
        recall, passing_L = _changed(found.recall, found.passing_L, step * more_near_L)
        stay, kept_L = _changed(found.stay, found.kept_L, step * more_next_L)
        found = replace(
            found,
            log_weight_CLE=np.clip(log_weight_CLE, -MAX_LOG_WEIGHT, MAX_LOG_WEIGHT),
            recall=recall,
            stay=stay,
            lasting_L=_share(found.lasting_L + _GAIN * step * (target.far_L - has.far_L)),
            passing_L=passing_L,
            kept_L=kept_L,
        )
    return found


def _changed(topical: float, own_L: Floats, more_L: Floats) -> tuple[float, Floats]:
    """A probability of topics and the shares of noise, changed so that tokens overlap by ``more_L`` more.

    Topics make all layers alike: they change with the mean, and each layer's noise with the rest, unless
    topics do all or nothing already.
    """
    more = float(np.nan_to_num(more_L.mean()))
    changed = float(np.clip(topical + 2.0 * more, 0.0, _MOST_TOPICAL))
    if 0.0 < changed < _MOST_TOPICAL:
        more_L = more_L - more
    return changed, _share(own_L + _GAIN * more_L)


def _share(values_L: Floats) -> Floats:
    """Between 0 and 1; 0 where the trace has no such distance."""
    return np.asarray(np.clip(np.nan_to_num(values_L, nan=0.0), 0.0, 1.0))


def _with_gates(found: Generator, trace: RoutingTrace, seed: int) -> Generator:
    """Sharpness, sum and level, so that weights and scores have the means of the trace's."""
    tokens = max(1, min(trace.tokens, _DRAWS // found.log_weight_CLE[0].size))
    made = generate(found, 1 + tokens // _REQUEST_TOKENS, _REQUEST_TOKENS, seed)
    if trace.weights_TLK is not None:
        gate_sum_L = trace.weights_TLK.astype(np.float64).sum(axis=2).mean(axis=0)
        found = replace(found, gate_sum_L=np.clip(gate_sum_L, 0.0, 1000.0))
        if trace.meta.top_k > 1:
            assert made.weights_TLK is not None  # always generated
            sharpness_L = _spread(trace.weights_TLK) / np.maximum(_spread(made.weights_TLK), 1e-6)
            found = replace(found, sharpness_L=np.clip(sharpness_L, 0.0, 100.0))
    if trace.candidate_scores_TLC is not None:
        best_TL = trace.candidate_scores_TLC.astype(np.float64).max(axis=2)
        logit = bool((trace.candidate_scores_TLC < 0).any() or (best_TL > 1).any())
        level_L = (best_TL if logit else np.log(np.maximum(best_TL, 1e-30))).mean(axis=0)
        found = replace(found, score_level_L=np.clip(level_L, -1000.0, 1000.0), score_is_logit=logit)
    return found


def _spread(weights_TLK: Array) -> Floats:
    """Mean logarithm of the largest over the smallest of a token's weights, by layer."""
    weights = np.maximum(weights_TLK.astype(np.float64), 1e-7)
    return np.asarray(np.log(weights.max(axis=2) / weights.min(axis=2)).mean(axis=0))
