"""Generated routing with a stated skew and persistence, for where no recording is at hand.

The model, for each MoE layer on its own:

* Expert e has a fixed popularity w_e = exp(skew · z_e), z_e standard normal: log-normal loads are
  what serving systems report.
* A token chooses the K experts with the largest scores s_e = w_e / x_e, x_e ~ Exp(1). As
  ln(1 / x_e) is a Gumbel variable, this is the Gumbel top-k trick: the choice is a draw of K experts
  without replacement with probabilities proportional to w (Yellott 1977; Kool et al., ICML 2019).
* Along a request each x_e is kept with probability ``persistence`` and drawn anew otherwise. So
  neighbouring tokens share experts, while every token alone still has the distribution above.
* With expert groups (DeepSeek-V3's n_group and topk_group) only the experts of the ``top_groups``
  groups with the largest sum of their two best scores can be chosen (arXiv 2412.19437, section 2.1.2).
* Gate weights are the chosen scores, normalised: the softmax over the chosen logits ln s_e. Candidates are
  the best experts beyond the chosen ones, with their scores, normalised over all that are stored.

Layers are independent of each other, as are requests; real routing is neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from traces.base.arrays import Array
from traces.base.errors import TraceError
from traces.base.jit import jit
from traces.base.memory import require_memory
from traces.draws import STEP, choose, mix64, uniform40
from traces.meta import TraceMeta
from traces.routing import RoutingTrace
from traces.statistics import expert_loads

_MAX_SKEW = 10.0  # exp(10 · z) stays far inside float64, and no router is that skewed


@dataclass(frozen=True)
class SynthSpec:
    """What to generate.

    Attributes:
        model: name written into the trace.
        layers: true indices of the MoE layers.
        experts: E.
        top_k: K.
        requests: number of requests.
        tokens_per_request: tokens of each.
        skew: standard deviation of the logarithm of expert popularity; 0 is uniform.
        persistence: probability that an expert's noise is kept from one token to the next, below 1.
        groups: expert groups, E divides by it; 1 = no groups.
        top_groups: groups from which a token may choose.
        candidates: C, the best experts of each token that are stored with their scores; 0 stores none.
        seed: equal seeds give equal traces.

    Raises:
        TraceError: a value is outside its range.
    """

    model: str
    layers: tuple[int, ...]
    experts: int
    top_k: int
    requests: int
    tokens_per_request: int
    skew: float
    persistence: float
    groups: int = 1
    top_groups: int = 1
    candidates: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self.meta("")  # checks what stands in it
        for field in ("requests", "tokens_per_request", "groups", "top_groups", "seed"):
            value, least = getattr(self, field), 0 if field == "seed" else 1
            whole = isinstance(value, int) and value >= least
            _require(whole, f"must be a whole number from {least}", field, value)
        _require(0 <= self.skew <= _MAX_SKEW, f"must be between 0 and {_MAX_SKEW:g}", "skew", self.skew)
        _require(0 <= self.persistence < 1, "must be at least 0 and below 1", "persistence", self.persistence)
        _require(
            self.experts % self.groups == 0, f"must divide {self.experts} experts", "groups", self.groups
        )
        _require(
            self.top_groups <= self.groups, f"must be at most {self.groups}", "top_groups", self.top_groups
        )
        reachable = self.experts // self.groups * self.top_groups
        for field in ("top_k", "candidates"):
            asked = getattr(self, field)
            _require(asked <= reachable, f"must be at most {reachable}, the experts in reach", field, asked)

    def meta(self, origin: str) -> TraceMeta:
        """Of the trace that is generated."""
        return TraceMeta(
            self.model, self.experts, self.top_k, self.layers, origin, "", candidates=self.candidates
        )


def synthesize(spec: SynthSpec) -> RoutingTrace:
    """Generate a trace; weights are float16, descending within a token.

    >>> spec = SynthSpec("tiny", (0,), 4, 2, requests=1, tokens_per_request=3, skew=0.5, persistence=0.5)
    >>> synthesize(spec).ids_TLK.shape
    (3, 1, 2)

    Raises:
        TraceError: the trace would not fit into memory.
    """
    tokens, layers = spec.requests * spec.tokens_per_request, len(spec.layers)
    drawn = spec.candidates or spec.top_k
    row_bytes = layers * (drawn + spec.top_k) * 4
    require_memory(tokens * row_bytes, f"a generated trace of {tokens} tokens", error=TraceError)
    meta = spec.meta("generated")
    popularity_seed, noise_seed = np.random.SeedSequence(spec.seed).spawn(2)
    z_LE = np.random.default_rng(popularity_seed).standard_normal((layers, spec.experts))
    popularity_LE = np.exp(spec.skew * z_LE)
    stream_RL = noise_seed.generate_state(spec.requests * layers, np.uint64).reshape(spec.requests, layers)
    ids_TLC = np.empty((tokens, layers, drawn), meta.ids_dtype)
    scores_TLC = np.empty(ids_TLC.shape, np.float32)
    _draw(
        popularity_LE,
        stream_RL,
        spec.tokens_per_request,
        spec.persistence,
        spec.groups,
        spec.top_groups,
        ids_TLC,
        scores_TLC,
    )
    weights_TLK = scores_TLC[..., : spec.top_k]
    if spec.candidates:
        weights_TLK = weights_TLK / weights_TLK.sum(axis=-1, keepdims=True)
    trace = RoutingTrace(
        meta=meta,
        ids_TLK=np.ascontiguousarray(ids_TLC[..., : spec.top_k]),
        weights_TLK=weights_TLK.astype(np.float16),
        candidate_ids_TLC=ids_TLC if spec.candidates else None,
        candidate_scores_TLC=scores_TLC.astype(np.float16) if spec.candidates else None,
        request_T=np.repeat(np.arange(spec.requests, dtype=np.int32), spec.tokens_per_request),
        position_T=np.tile(np.arange(spec.tokens_per_request, dtype=np.int32), spec.requests),
    )
    return replace(trace, meta=replace(meta, origin=_origin(spec, trace)))


def _origin(spec: SynthSpec, trace: RoutingTrace) -> str:
    load_LE = expert_loads(trace)
    skew = float(np.mean(load_LE.max(axis=1) / load_LE.mean(axis=1)))
    groups = f", {spec.top_groups} of {spec.groups} groups" if spec.groups > 1 else ""
    return (
        f"generated: log-normal popularity with skew {spec.skew:g}, "
        f"persistence {spec.persistence:g}{groups}, seed {spec.seed}; "
        f"the most loaded expert of a layer gets {skew:.2f} times the mean"
    )


def _require(holds: bool, rule: str, field: str, got: object) -> None:
    if not holds:
        raise TraceError(rule, field=field, got=got)


@jit
def _draw(
    popularity_LE: Array,
    stream_RL: Array,
    tokens_per_request: int,
    persistence: float,
    groups: int,
    top_groups: int,
    ids_TLC: Array,
    scores_TLC: Array,
) -> None:
    """Fill ids and scores; each (request, layer) draws from a SplitMix64 stream of its own."""
    layers, experts = popularity_LE.shape
    score_E = np.empty(experts)
    keep_below = np.uint64(persistence * 2.0**24)
    for request in range(stream_RL.shape[0]):
        for layer in range(layers):
            state = stream_RL[request, layer]
            for position in range(tokens_per_request):
                for expert in range(experts):
                    # One draw gives 24 bits that decide whether the noise is kept, and 40 bits of new noise.
                    state += STEP
                    bits = mix64(state)
                    if position > 0 and (bits >> np.uint64(40)) < keep_below:
                        continue
                    score_E[expert] = popularity_LE[layer, expert] / -math.log(uniform40(bits))
                token = request * tokens_per_request + position
                choose(score_E, groups, top_groups, ids_TLC[token, layer], scores_TLC[token, layer])
