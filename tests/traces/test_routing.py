"""The rules of a routing trace, each broken once, and what a trace in memory can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.traces.random_traces import any_trace, random_trace, same
from traces.base.errors import TraceError
from traces.meta import TraceMeta
from traces.routing import RoutingTrace, join


def changed(name: str, index: tuple[int | slice, ...], value: float, **options: Any) -> RoutingTrace:
    """A valid trace with one value of one array replaced."""
    trace = random_trace(**options)
    array = getattr(trace, name).copy()
    array[index] = value
    arrays: dict[str, Any] = {name: array}
    broken: RoutingTrace = replace(trace, **arrays)
    return broken


FAULTS: dict[str, tuple[Callable[[], RoutingTrace], str]] = {
    "id too large": (
        lambda: changed("ids_TLK", (5, 1, 0), 40, experts=32),
        "experts_3, token 5: expert id must be below 32 (got 40)",
    ),
    "expert twice": (
        lambda: changed("ids_TLK", (7, 0, slice(None)), 6),
        "experts_1, token 7: an expert is named twice (got 6)",
    ),
    "NaN weight": (
        lambda: changed("weights_TLK", (2, 1, 1), np.nan),
        "weights_3, token 2: gate weight must be finite and not negative (got nan)",
    ),
    "infinite weight": (
        lambda: changed("weights_TLK", (0, 0, 0), np.inf, weights=np.float32),
        "weights_1, token 0: gate weight must be finite and not negative (got inf)",
    ),
    "negative weight": (
        lambda: changed("weights_TLK", (0, 0, 1), -0.5),
        "weights_1, token 0: gate weight must be finite and not negative (got -0.5)",
    ),
    "request comes back": (
        lambda: changed("request_T", (7,), 0),
        "request, token 7: requests must be numbered from 0 upwards in order of appearance, "
        "each in contiguous rows (got 0)",
    ),
    "negative request": (
        lambda: changed("request_T", (0,), -1),
        "request, token 0: requests must be numbered from 0 upwards in order of appearance, "
        "each in contiguous rows (got -1)",
    ),
    "position repeats": (
        lambda: changed("position_T", (2,), 1),
        "position, token 2: positions must ascend inside a request, from 0 or above (got 1)",
    ),
    "negative position": (
        lambda: changed("position_T", (4,), -3),
        "position, token 4: positions must ascend inside a request, from 0 or above (got -3)",
    ),
    "negative step": (
        lambda: changed("step_T", (3,), -1, steps=True),
        "step, token 3: must be at least 0 (got -1)",
    ),
    "negative rank": (
        lambda: changed("source_rank_T", (0,), -7, ranks=True),
        "source_rank, token 0: must be at least 0 (got -7)",
    ),
    "unknown category": (
        lambda: changed("category_T", (0,), 2, categories=("a", "b")),
        "category: must be below 2, the number of categories (got 2)",
    ),
    "infinite score": (
        lambda: changed("candidate_scores_TLC", (1, 1, 0), np.inf, candidates=4),
        "scores_3, token 1: score must be finite (got inf)",
    ),
    "candidate twice": (
        lambda: changed("candidate_ids_TLC", (1, 1, slice(None)), 0, candidates=4),
        "candidates_3, token 1: an expert is named twice (got 0)",
    ),
    "too few scores": (
        lambda: replace(random_trace(candidates=4), candidate_scores_TLC=None),
        "candidates and their scores come together",
    ),
    "candidates not announced": (
        lambda: replace(random_trace(candidates=4), candidate_ids_TLC=None, candidate_scores_TLC=None),
        "candidates: does not match the candidates stored",
    ),
    "wrong dtype": (
        lambda: replace(random_trace(), ids_TLK=random_trace().ids_TLK.astype(np.int64)),
        "ids_TLK: must be uint8 (got int64)",
    ),
    "wrong length": (
        lambda: replace(random_trace(), request_T=np.zeros(3, np.int32)),
        "request_T: must have shape (8,) (got (3,))",
    ),
    "repeated category": (
        lambda: replace(random_trace(categories=("a", "b")), categories=("a", "a")),
        "categories: must not repeat a name",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_rule_is_named(fault: str) -> None:
    make, message = FAULTS[fault]
    with pytest.raises(TraceError) as caught:
        make().validate(file="x.parquet")
    assert str(caught.value) == f"x.parquet: {message}"


def test_candidates_must_contain_the_chosen() -> None:
    trace = random_trace(candidates=4)
    assert trace.candidate_ids_TLC is not None
    wrong = trace.candidate_ids_TLC.copy()
    missing = int(trace.ids_TLK[6, 1, 1])
    unused = next(expert for expert in range(8) if expert not in wrong[6, 1])
    wrong[6, 1][wrong[6, 1] == missing] = unused
    with pytest.raises(TraceError, match=rf"^candidates_3, token 6: .*chosen expert \(got {missing}\)$"):
        replace(trace, candidate_ids_TLC=wrong).validate()


def test_minus_zero_is_a_weight() -> None:
    for dtype in (np.float16, np.float32):
        changed("weights_TLK", (0, 0, 0), -0.0, weights=dtype).validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": 0}, "experts: must be between 1 and 65536 (got 0)"),
        ({"experts": True}, "experts: must be a whole number (got True)"),
        ({"experts": 8.0}, "experts: must be a whole number (got 8.0)"),
        ({"top_k": 9}, "top_k: must be between 1 and 8 (got 9)"),
        ({"layers": ()}, "layers: must name at least one layer (got ())"),
        ({"layers": (3, 3)}, "layers: must ascend, each layer once (got (3, 3))"),
        ({"layers": (0, -1)}, "layers: must be between 0 and 2147483647 (got -1)"),
        ({"candidates": 2}, "candidates: must be 0 or above top_k (got 2)"),
        ({"candidates": 9}, "candidates: must be between 0 and 8 (got 9)"),
        ({"model": None}, "model: must be text (got None)"),
        ({"origin": "\ud800"}, "origin: must be valid Unicode (got \"'\\\\ud800'\")"),
    ],
)
def test_metadata_rules(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "model": "m",
        "experts": 8,
        "top_k": 2,
        "layers": (0,),
        "origin": "",
        "licence": "",
    }
    with pytest.raises(TraceError) as caught:
        TraceMeta(**{**fields, **change})
    assert str(caught.value) == message


@given(any_trace())
def test_every_drawn_trace_is_valid(trace: RoutingTrace) -> None:
    assert trace.validate() == (trace.request_T[-1], trace.position_T[-1])


@given(any_trace(), st.data())
def test_requests_are_cut_at_their_ends(trace: RoutingTrace, data: st.DataObject) -> None:
    requests = len(trace.request_offsets) - 1
    start = data.draw(st.integers(0, requests - 1))
    stop = data.draw(st.integers(start + 1, requests))
    part = trace.select_requests(start, stop)
    inside = (trace.request_T >= start) & (trace.request_T < stop)
    assert np.array_equal(part.ids_TLK, trace.ids_TLK[inside])
    assert np.array_equal(part.request_T, trace.request_T[inside])
    part.validate()


@given(any_trace(), st.integers(1, 40))
def test_windows_joined_are_the_whole(trace: RoutingTrace, size: int) -> None:
    assert same(join(trace.windows(size), trace.tokens), trace)


def test_offsets_of_numbered_requests() -> None:
    trace = replace(random_trace(), request_T=np.array([2, 2, 2, 2, 5, 9, 9, 9], np.int32))
    trace.validate()
    assert trace.request_offsets.tolist() == [0, 4, 5, 8]
    assert trace.request_offsets.dtype == np.int64


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (1, 1), (0, 4), (2, 1)])
def test_a_range_outside_is_refused(start: int, stop: int) -> None:
    with pytest.raises(TraceError, match="requests: must be a range within 0:3"):
        random_trace().select_requests(start, stop)


def test_digest_covers_every_array_and_the_metadata() -> None:
    trace = random_trace(candidates=4, steps=True, ranks=True, categories=("a", "b"))
    variants = [trace, replace(trace, meta=replace(trace.meta, origin="elsewhere"))]
    variants.append(replace(trace, categories=("a", "c")))
    for name, array in trace.present():
        other = array.copy()
        other.flat[-1] += 1
        arrays: dict[str, Any] = {name: other}
        variants.append(replace(trace, **arrays))
    assert len({variant.digest() for variant in variants}) == len(variants)
    assert (
        random_trace(candidates=4, steps=True, ranks=True, categories=("a", "b")).digest() == trace.digest()
    )


def test_joining_refuses_other_columns_and_counts() -> None:
    trace = random_trace()
    with pytest.raises(TraceError, match="same columns"):
        join([trace, replace(trace, weights_TLK=None)], 16)
    with pytest.raises(TraceError, match=r"must hold 9 tokens \(got 8\)"):
        join([trace], 9)


def test_what_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traces.base.memory.physical_memory", lambda: 100)
    with pytest.raises(TraceError, match=r"needs 0\.0 GiB of memory.*read a window"):
        join([random_trace()], 8)
