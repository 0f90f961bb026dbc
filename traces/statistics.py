"""What a trace's routing looks like before any deployment: skew, batches, neighbours, GPU loads.

Everything is computed in one pass over windows, so a trace may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from traces.base.arrays import Array, Ints
from traces.base.errors import TraceError
from traces.counting import Count, Sample, batch_loads
from traces.load_table import LoadTable
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

BATCH_SIZES = (16, 64, 256)


class TraceSource(Protocol):
    """A trace in memory or on disk: :class:`RoutingTrace` and :class:`TraceFile` both are one."""

    @property
    def meta(self) -> TraceMeta: ...
    @property
    def tokens(self) -> int: ...
    @property
    def has_weights(self) -> bool: ...
    @property
    def categories(self) -> tuple[str, ...]: ...
    def windows(self, *, ids_only: bool = False) -> Iterator[RoutingTrace]: ...


@dataclass(frozen=True)
class LayerStatistics:
    """One MoE layer over the whole trace.

    Attributes:
        layer: true index in the model.
        max_over_mean: load of the most loaded expert over the mean.
        gini: Gini coefficient of the expert loads: 0 = all equal, 1 − 1/E = all on one.
        never_activated: share of the experts without any token.
        overlap: share of a token's experts that the next token of its request chooses again; None
            where no two tokens follow each other, or tokens are not known.
    """

    layer: int
    max_over_mean: float
    gini: float
    never_activated: float
    overlap: float | None


@dataclass(frozen=True)
class GpuStatistics:
    """Loads of G GPUs that hold E/G neighbouring experts each.

    Attributes:
        balancedness: mean / max over GPUs, averaged over layers (SGLang's formula: both plus 1e-5).
        straggler_ratio: max / mean over GPUs, averaged over layers.
    """

    gpus: int
    balancedness: float
    straggler_ratio: float


@dataclass(frozen=True)
class BatchStatistics:
    """Batches of random tokens, averaged over batches and layers.

    Attributes:
        tokens: tokens of a batch.
        max_over_mean: as in :class:`LayerStatistics`, for the batch alone.
        activated: share of the experts with at least one token.
        gpus: GPU loads of a batch, where a number of GPUs was named.
    """

    tokens: int
    max_over_mean: float
    activated: float
    gpus: GpuStatistics | None


@dataclass(frozen=True)
class TraceStatistics:
    """All that ``moesim trace info`` shows of a routing trace."""

    meta: TraceMeta
    tokens: int
    requests: int
    assignments: int
    weights: bool
    categories: dict[str, int]  # tokens of each, "" = unknown
    max_over_mean_median: float
    max_over_mean_worst: float
    overlap: float | None
    overlap_by_chance: float
    batches: tuple[BatchStatistics, ...]
    gpus: GpuStatistics | None
    layers: tuple[LayerStatistics, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return {**asdict(self), "meta": self.meta.to_dict()}


@dataclass(frozen=True)
class TableStatistics:
    """All that ``moesim trace info`` shows of a load table."""

    model: str
    experts: int
    windows: int
    assignments: int | float  # whole where the loads are
    max_over_mean_median: float
    max_over_mean_worst: float
    gpus: GpuStatistics | None
    layers: tuple[LayerStatistics, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self)


def expert_loads(trace: TraceSource) -> Ints:
    """Assignments of each expert in each layer, int64 [L, E]."""
    count = Count(trace.meta)
    for window in trace.windows(ids_only=True):
        count.add(window)
    return count.load_LE


def trace_statistics(trace: TraceSource, *, ep: int | None = None, seed: int = 0) -> TraceStatistics:
    """Count the whole trace once and describe it.

    Args:
        ep: G, to report the loads of so many GPUs; must divide E.
        seed: chooses the tokens of the random batches.

    Raises:
        TraceError: ``ep`` does not divide E, or the trace breaks a rule of its format.
    """
    meta = trace.meta
    require_divisor(meta.experts, ep)
    count, sample = Count(meta), Sample(trace.tokens, BATCH_SIZES, seed)
    categories: dict[str, int] = {}
    for window in trace.windows(ids_only=True):
        sample.add(window, count.tokens)
        count.add(window)
        _count_categories(window, categories)
    overlap_L = count.overlap()
    layers = layer_statistics(meta.layers, count.load_LE, overlap_L)
    ratios = [layer.max_over_mean for layer in layers]
    return TraceStatistics(
        meta=meta,
        tokens=count.tokens,
        requests=count.requests,
        assignments=count.tokens * len(meta.layers) * meta.top_k,
        weights=trace.has_weights,
        categories=categories,
        max_over_mean_median=float(np.median(ratios)),
        max_over_mean_worst=max(ratios),
        overlap=None if overlap_L is None else float(np.mean(overlap_L)),
        overlap_by_chance=float(np.mean(chance_overlap(count.load_LE, meta.top_k))),
        batches=tuple(_batch_statistics(batch_BTLK, meta, ep) for batch_BTLK in sample.batches()),
        gpus=None if ep is None else gpu_statistics(count.load_LE, ep),
        layers=layers,
    )


def table_statistics(table: LoadTable, *, ep: int | None = None) -> TableStatistics:
    """Describe a load table, all windows together.

    Raises:
        TraceError: ``ep`` does not divide E.
    """
    require_divisor(table.experts, ep)
    load_LE = table.load_LE
    layers = layer_statistics(table.layers, load_LE)
    ratios = [layer.max_over_mean for layer in layers]
    return TableStatistics(
        model=table.model,
        experts=table.experts,
        windows=table.windows,
        assignments=load_LE.sum().item(),
        max_over_mean_median=float(np.median(ratios)),
        max_over_mean_worst=max(ratios),
        gpus=None if ep is None else gpu_statistics(load_LE, ep),
        layers=layers,
    )


def layer_statistics(
    layers: Sequence[int], load_LE: Ints, overlap_L: Sequence[float] | None = None
) -> tuple[LayerStatistics, ...]:
    """Skew of each layer's expert loads; every layer has some load."""
    return tuple(
        LayerStatistics(
            layer=layer,
            max_over_mean=float(load_E.max() / load_E.mean()),
            gini=gini(load_E),
            never_activated=float(np.mean(load_E == 0)),
            overlap=None if overlap_L is None else overlap_L[index],
        )
        for index, (layer, load_E) in enumerate(zip(layers, load_LE, strict=True))
    )


def gpu_statistics(load_LE: Ints, ep: int) -> GpuStatistics:
    """Loads of ``ep`` GPUs; GPU g holds experts g·E/G to (g+1)·E/G."""
    layers = len(load_LE)
    load_LG = load_LE.reshape(layers, ep, -1).sum(axis=2)
    mean_L, max_L = load_LG.mean(axis=1), load_LG.max(axis=1)
    return GpuStatistics(
        gpus=ep,
        balancedness=float(np.mean((mean_L + 1e-5) / (max_L + 1e-5))),
        straggler_ratio=float(np.mean(max_L / mean_L)),
    )


def chance_overlap(load_LE: Ints, top_k: int) -> Array:
    """float64 [L]: the share of its experts that a token has in common with a token drawn at random.

    An expert is among those of a token with probability π = K · load / Σ load, among those of both with
    π²; so the share is Σ π² / K: K / E where all experts are equally popular, more otherwise.

    >>> chance_overlap(np.array([[2, 2, 2, 2], [4, 4, 0, 0]]), top_k=2).tolist()
    [0.5, 1.0]
    """
    share_LE = load_LE / load_LE.sum(axis=1, keepdims=True)
    overlap_L: Array = top_k * (share_LE**2).sum(axis=1)
    return overlap_L


def gini(load_E: Array) -> float:
    """Gini coefficient: Σ_i (2i − E − 1) x_i / (E · Σ x), x ascending, i from 1.

    >>> gini(np.array([1, 1, 1, 1])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ascending = np.sort(load_E).astype(np.float64)
    size = len(ascending)
    rank = 2 * np.arange(1, size + 1) - size - 1
    return float(rank @ ascending / (size * ascending.sum()))


def require_divisor(experts: int, ep: int | None) -> None:
    """Refuse a number of GPUs that does not divide the experts."""
    if ep is not None and (ep < 1 or experts % ep):
        raise TraceError(f"must divide {experts} experts", field="ep", got=ep)


def _batch_statistics(batch_BTLK: Array, meta: TraceMeta, ep: int | None) -> BatchStatistics:
    load_NE = batch_loads(batch_BTLK, meta.experts).reshape(-1, meta.experts)
    return BatchStatistics(
        tokens=batch_BTLK.shape[1],
        max_over_mean=float(np.mean(load_NE.max(axis=1) / load_NE.mean(axis=1))),
        activated=float(np.mean(load_NE > 0)),
        gpus=None if ep is None else gpu_statistics(load_NE, ep),
    )


def _count_categories(window: RoutingTrace, categories: dict[str, int]) -> None:
    if window.category_T is None:
        return
    # Code -1, unknown, is counted at index 0.
    counts = np.bincount(window.category_T + 1, minlength=len(window.categories) + 1).tolist()
    for name, tokens in zip(("", *window.categories), counts, strict=True):
        if tokens:
            categories[name] = categories.get(name, 0) + tokens
