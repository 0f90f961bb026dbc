"""What is compared of two traces: vectors of statistics, and the distance between two of them.

Axes: L MoE layers, E experts, N nodes, D distances in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.co_activation import co_activations
from traces.counting import Sample, batch_loads
from traces.locality import Locality
from traces.routing import RoutingTrace
from traces.statistics import expert_loads

Floats = npt.NDArray[np.float64]

BATCHES = (16, 64, 256)
GPUS, NODES = 8, 4


def sorted_loads(trace: RoutingTrace) -> Floats:
    """Shares of a layer's assignments, the least loaded expert first, [L, E]."""
    load_LE = expert_loads(trace)
    return np.asarray(np.sort(load_LE / load_LE.sum(axis=1, keepdims=True), axis=1))


def batch_skew(trace: RoutingTrace, tokens: int) -> Floats:
    """Max / mean of expert loads in batches of random tokens, mean over batches, [L, 1]."""
    meta = trace.meta
    sample = Sample(trace.tokens, (tokens,), seed=0)
    sample.add(trace, 0)
    (batches,) = sample.batches()
    load_BLE = batch_loads(batches, meta.experts)
    return np.asarray(_max_over_mean(load_BLE).mean(axis=0)[:, None])


def straggler_ratio(trace: RoutingTrace) -> Floats:
    """Max / mean of the loads of ``GPUS`` GPUs with neighbouring experts, [L, 1]."""
    load_LE = expert_loads(trace)
    return _max_over_mean(load_LE.reshape(len(load_LE), GPUS, -1).sum(axis=2))[:, None]


def temporal_overlap(trace: RoutingTrace) -> Floats:
    """Share of experts that two tokens of a request have in common, by distance up to 128, [L, D]."""
    locality = Locality(trace.meta)
    locality.add(trace)
    return locality.overlap_DL().T


def node_co_activation(trace: RoutingTrace) -> Floats:
    """Share of a layer's pairs of experts of a token that lie on two given nodes, [L, N²]."""
    experts = trace.meta.experts
    pairs_LEE = co_activations(trace.ids_TLK, experts)
    pairs_LEE[:, range(experts), range(experts)] = 0
    layers, each = len(pairs_LEE), experts // NODES
    pairs_LNN = pairs_LEE.reshape(layers, NODES, each, NODES, each).sum(axis=(2, 4))
    return np.asarray((pairs_LNN / pairs_LNN.sum(axis=(1, 2), keepdims=True)).reshape(layers, -1))


STATISTICS: Mapping[str, Callable[[RoutingTrace], Floats]] = MappingProxyType(
    {
        "sorted loads": sorted_loads,
        **{f"batch {size} max / mean": partial(batch_skew, tokens=size) for size in BATCHES},
        f"EP{GPUS} straggler ratio": straggler_ratio,
        "temporal overlap": temporal_overlap,
        "node co-activation": node_co_activation,
    }
)
"""By name: what gives a row for each layer."""


def distance(one: Floats, other: Floats) -> float:
    """L1 distance of a layer's rows, mean over layers."""
    return float(np.abs(one - other).sum(axis=1).mean())


def _max_over_mean(load: npt.NDArray[Any]) -> Floats:
    return np.asarray(load.max(axis=-1) / load.mean(axis=-1))
