"""The whole description of a trace: beside its skew, who meets whom, what changes, what repeats.

Two passes over windows, so a trace may be larger than memory; pairs of experts are counted in full.

Axes: L MoE layers, E experts, P parts of the trace, C categories.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from traces.base.arrays import Array, Floats, Ints
from traces.base.errors import TraceError
from traces.base.memory import require_memory
from traces.co_activation import (
    clusters,
    co_activations,
    mutual_information,
    pair_excess,
    pairs_by_chance,
    transitions,
)
from traces.counting import add_loads
from traces.locality import LAGS, Locality
from traces.meta import TraceMeta
from traces.routing import RoutingTrace
from traces.statistics import TraceSource, TraceStatistics, trace_statistics

PARTS = 8
"""Equal parts of the trace, in its order, between which drift is measured."""

_PAIRS = 3  # of each layer, named in the tables


@dataclass(frozen=True)
class Pair:
    """Two experts of a layer that meet more often than their loads explain.

    Attributes:
        tokens: tokens that chose both.
        lift: over the tokens expected from both loads.
    """

    experts: tuple[int, int]
    tokens: int
    lift: float


@dataclass(frozen=True)
class LayerDetail:
    """One MoE layer over the whole trace.

    Attributes:
        layer: true index in the model.
        evenness: entropy of the expert loads over its largest value, ln E: 1 = all equal; 1 for E = 1.
        gate_entropy: mean entropy of a token's gate weights over ln K: 1 = all equal. None without weights,
            or with K = 1.
        pair_excess: see :func:`traces.co_activation.pair_excess`.
        clustered: share of experts with company, and the size of the largest cluster; see
            :func:`traces.co_activation.clusters`.
        next_layer_bits: what an expert tells of one in the next layer, by
            :func:`traces.co_activation.mutual_information`; None in the last.
        pairs: the three pairs with the most meetings beyond chance.
    """

    layer: int
    evenness: float
    gate_entropy: float | None
    pair_excess: float | None
    clustered: float
    largest_cluster: int
    next_layer_bits: float | None
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Distance:
    """Over some distance or stretch of tokens inside a request; None where no request is so long.

    Attributes:
        overlap: share of experts shared by two tokens so far apart, averaged over layers.
        union: share of all experts that a stretch of so many tokens activates, averaged over layers.
    """

    tokens: int
    overlap: float | None
    union: float | None


@dataclass(frozen=True)
class Part:
    """A part of the trace, or a category of requests; averages over layers.

    Attributes:
        name: the tokens of the part, or the category; "" is unknown.
        max_over_mean: of the part's own expert loads.
        distance: total variation distance of its loads from those of the rest of the trace: the share of
            assignments that would have to go elsewhere. None where it is all there is.
        by_chance: what that distance would be if all tokens were drawn independently from one population.
    """

    name: str
    tokens: int
    max_over_mean: float
    distance: float | None
    by_chance: float | None


@dataclass(frozen=True, eq=False)
class FullStatistics:
    """All that ``moesim trace info --full`` shows.

    Attributes:
        base: what ``info`` shows without it.
        load_LE: int64, assignments.
        busiest: index of the layer with the largest ``pair_excess``.
        pairs_EE: int64, co-activations in it, for the picture.
    """

    base: TraceStatistics
    layers: tuple[LayerDetail, ...]
    distances: tuple[Distance, ...]
    parts: tuple[Part, ...]
    categories: tuple[Part, ...]
    load_LE: Ints
    busiest: int
    pairs_EE: Ints

    def to_dict(self) -> dict[str, Any]:
        """The base's object, with everything else under ``full``."""
        rows = {
            name: [asdict(row) for row in getattr(self, name)]
            for name in ("layers", "distances", "parts", "categories")
        }
        return {**self.base.to_dict(), "full": {**rows, "load": self.load_LE.tolist()}}


class _Detail:
    """What the second pass counts."""

    def __init__(self, meta: TraceMeta, tokens: int, categories: int) -> None:
        layers, experts = len(meta.layers), meta.experts
        require_memory(
            (4 * layers + 8) * experts**2 * 8,
            f"counting all pairs of {experts} experts in {layers} layers",
            error=TraceError,
        )
        self.pairs_LEE = np.zeros((layers, experts, experts), np.int64)
        self.onward_LEE = np.zeros((layers - 1, experts, experts), np.int64)
        self.part_PLE = np.zeros((min(PARTS, tokens), layers, experts), np.int64)
        # The last one holds what has no category.
        self.category_CLE = np.zeros((categories + 1, layers, experts), np.int64)
        self.entropy_L = np.zeros(layers)
        self.locality = Locality(meta)
        self._tokens, self._seen = tokens, 0

    def add(self, window: RoutingTrace) -> None:
        """Count the next window of the trace."""
        experts = window.meta.experts
        self.pairs_LEE += co_activations(window.ids_TLK, experts)
        self.onward_LEE += transitions(window.ids_TLK, experts)
        self.locality.add(window)
        part_T = (self._seen + np.arange(window.tokens)) * len(self.part_PLE) // self._tokens
        add_loads(window.ids_TLK, part_T, self.part_PLE)
        if window.category_T is not None:
            add_loads(window.ids_TLK, window.category_T.astype(np.int64), self.category_CLE)
        if window.weights_TLK is not None and window.meta.top_k > 1:
            self.entropy_L += _entropy(window.weights_TLK.astype(np.float64)).sum(axis=0)
        self._seen += window.tokens


def full_statistics(trace: TraceSource, *, ep: int | None = None) -> FullStatistics:
    """Describe a trace in full.

    Args:
        ep: G, to report the loads of so many GPUs; must divide E.

    Raises:
        TraceError: ``ep`` does not divide E, pairs of experts do not fit into memory, or the trace breaks
            a rule of its format.
    """
    base = trace_statistics(trace, ep=ep)
    meta, names = base.meta, trace.categories
    found = _Detail(meta, base.tokens, len(names))
    for window in trace.windows():
        found.add(window)
    entropy_L = found.entropy_L / base.tokens if base.weights and meta.top_k > 1 else None
    layers = tuple(
        LayerDetail(
            layer=layer,
            evenness=_evenness(np.diagonal(pairs_EE)),
            gate_entropy=None if entropy_L is None else float(entropy_L[index]),
            pair_excess=pair_excess(pairs_EE),
            next_layer_bits=(
                mutual_information(found.onward_LEE[index], base.tokens)
                if index < len(found.onward_LEE)
                else None
            ),
            pairs=_most_excess(pairs_EE),
            **_company(pairs_EE),
        )
        for index, (layer, pairs_EE) in enumerate(zip(meta.layers, found.pairs_LEE, strict=True))
    )
    busiest = int(np.argmax([row.pair_excess or 0.0 for row in layers]))
    load_LE = found.part_PLE.sum(axis=0)
    shares = np.arange(len(found.part_PLE) + 1) * base.tokens / len(found.part_PLE)
    bounds = np.ceil(shares).astype(int).tolist()
    parts = [
        (f"{a:,} to {b - 1:,}", load) for a, b, load in zip(bounds, bounds[1:], found.part_PLE, strict=False)
    ]
    categories = [
        (name, load) for name, load in zip((*names, ""), found.category_CLE, strict=True) if load.any()
    ]
    return FullStatistics(
        base=base,
        layers=layers,
        distances=_distances(found.locality),
        parts=tuple(_part(name, part_LE, load_LE, meta.top_k) for name, part_LE in parts),
        categories=tuple(_part(name, part_LE, load_LE, meta.top_k) for name, part_LE in categories),
        load_LE=load_LE,
        busiest=busiest,
        pairs_EE=found.pairs_LEE[busiest],
    )


def _distances(locality: Locality) -> tuple[Distance, ...]:
    # Stretches are as long as distances.
    shares = (locality.overlap_DL().mean(axis=1).tolist(), locality.union_NL().mean(axis=1).tolist())
    return tuple(
        Distance(tokens, *(None if np.isnan(value) else value for value in values))
        for tokens, *values in zip(LAGS, *shares, strict=True)
    )


def _part(name: str, part_LE: Ints, load_LE: Ints, top_k: int) -> Part:
    tokens, rest_LE = int(part_LE[0].sum()) // top_k, load_LE - part_LE
    others = int(rest_LE[0].sum()) // top_k
    distance = by_chance = None
    if others:
        p_LE, q_LE = part_LE / (tokens * top_k), rest_LE / (others * top_k)
        distance = float(np.abs(p_LE - q_LE).sum(axis=1).mean() / 2)
        # A token chooses an expert or not: a share's variance is s (1 − s) / T, s = K p, and the mean of
        # the absolute value of a normal variable is √(2/π) times its standard deviation.
        chosen_LE = load_LE / (tokens + others)
        deviation_LE = np.sqrt(chosen_LE * (1 - chosen_LE) * (1 / tokens + 1 / others)) / top_k
        by_chance = float(np.sqrt(2 / np.pi) * deviation_LE.sum(axis=1).mean() / 2)
    ratio = float(np.mean(part_LE.max(axis=1) / part_LE.mean(axis=1)))
    return Part(name, tokens, ratio, distance, by_chance)


def _company(pairs_EE: Ints) -> dict[str, Any]:
    size_C = np.bincount(clusters(pairs_EE))
    return {
        "clustered": float(size_C[size_C > 1].sum() / len(pairs_EE)),
        "largest_cluster": int(size_C.max()),
    }


def _most_excess(pairs_EE: Ints) -> tuple[Pair, ...]:
    """Pairs of distinct experts, the most meetings beyond chance first."""
    chance_EE = pairs_by_chance(pairs_EE)
    a_N, b_N = np.triu_indices(len(pairs_EE), 1)
    excess_N = pairs_EE[a_N, b_N] - chance_EE[a_N, b_N]
    best = [n for n in np.argsort(-excess_N, kind="stable")[:_PAIRS] if excess_N[n] > 0]
    return tuple(
        Pair((int(a), int(b)), int(pairs_EE[a, b]), float(pairs_EE[a, b] / chance_EE[a, b]))
        for a, b in zip(a_N[best], b_N[best], strict=True)
    )


def _evenness(load_E: Array) -> float:
    return float(_entropy(load_E.astype(np.float64))) if len(load_E) > 1 else 1.0


def _entropy(amounts: Floats) -> Floats:
    """Entropy of the last axis's shares over its largest value; of nothing at all, 0."""
    total = amounts.sum(axis=-1, keepdims=True)
    share = np.divide(amounts, total, out=np.zeros_like(amounts), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(-(share * logs).sum(axis=-1) / np.log(amounts.shape[-1]))
