"""Routing traces for tests: small random ones, and a hypothesis strategy of any valid one."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from traces.meta import TraceMeta
from traces.routing import RoutingTrace


def random_trace(
    seed: int = 0,
    *,
    experts: int = 8,
    top_k: int = 2,
    layers: tuple[int, ...] = (1, 3),
    lengths: tuple[int, ...] = (4, 1, 3),
    weights: type[np.floating[Any]] | None = np.float16,
    candidates: int = 0,
    steps: bool = False,
    ranks: bool = False,
    categories: tuple[str, ...] = (),
) -> RoutingTrace:
    """A valid trace with requests of ``lengths`` tokens."""
    rng = np.random.default_rng(seed)
    tokens = sum(lengths)
    meta = TraceMeta("tiny", experts, top_k, layers, "a test", "CC0-1.0", candidates)
    order = rng.random((tokens, len(layers), experts)).argsort(axis=2).astype(meta.ids_dtype)
    shape = (tokens, len(layers), candidates)
    return RoutingTrace(
        meta=meta,
        ids_TLK=np.ascontiguousarray(order[:, :, :top_k]),
        weights_TLK=None if weights is None else rng.random((tokens, len(layers), top_k)).astype(weights),
        request_T=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        position_T=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        step_T=rng.integers(0, 9, tokens, np.int32) if steps else None,
        source_rank_T=rng.integers(0, 9, tokens, np.int32) if ranks else None,
        category_T=rng.integers(-1, len(categories), tokens, np.int32) if categories else None,
        categories=categories,
        candidate_ids_TLC=np.ascontiguousarray(order[:, :, :candidates]) if candidates else None,
        candidate_scores_TLC=rng.normal(size=shape).astype(np.float32) if candidates else None,
    )


@st.composite
def any_trace(draw: st.DrawFn) -> RoutingTrace:
    """Any combination of sizes, dtypes and optional columns."""
    experts = draw(st.sampled_from([1, 2, 5, 256, 257, 300]))
    top_k = draw(st.integers(1, min(experts, 9)))
    more = min(experts, top_k + 3)
    return random_trace(
        draw(st.integers(0, 2**32 - 1)),
        experts=experts,
        top_k=top_k,
        layers=tuple(sorted(draw(st.sets(st.integers(0, 99), min_size=1, max_size=4)))),
        lengths=tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))),
        weights=draw(st.sampled_from([None, np.float16, np.float32])),
        candidates=draw(st.sampled_from([0, more])) if more > top_k else 0,
        steps=draw(st.booleans()),
        ranks=draw(st.booleans()),
        categories=tuple(
            draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=4), unique=True, max_size=3))
        ),
    )


def same(left: RoutingTrace, right: RoutingTrace) -> bool:
    """Equal metadata, columns, dtypes and values."""
    a, b = dict(left.present()), dict(right.present())
    return (
        (left.meta, left.categories) == (right.meta, right.categories)
        and a.keys() == b.keys()
        and all(a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a)
    )
