"""Decode batches: what a server that follows requests token by token would see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.deployment.batch import (
    FIRST_POSITION,
    batches,
    decode_rows,
    gather_ids,
    gather_weights,
    home_offsets,
)
from moesim.errors import SpecError, TraceError
from moesim.spec.base import validate
from moesim.spec.workload import Workload
from traces.meta import TraceMeta
from traces.routing import RoutingTrace


def trace(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    position = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    return offsets, position


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8).filter(lambda all_: max(all_) > 4),
    batch=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
def test_each_sequence_follows_a_request_until_it_ends(lengths: list[int], batch: int, seed: int) -> None:
    offsets, position = trace(lengths)
    rows = np.array(list(decode_rows(offsets, position, batch, 25, np.random.default_rng(seed))))
    assert rows.shape == (25, batch)
    request = np.searchsorted(offsets, rows, side="right") - 1
    assert (position[rows] >= FIRST_POSITION).all()
    goes_on = rows[:-1] + 1 < offsets[request[:-1] + 1]
    assert (rows[1:][goes_on] == rows[:-1][goes_on] + 1).all()


def test_requests_are_drawn_equally_often_at_the_start() -> None:
    offsets, position = trace([10] * 6)
    (row_B,) = decode_rows(offsets, position, 15, 1, np.random.default_rng(1))
    drawn = np.bincount(np.searchsorted(offsets, row_B, side="right") - 1, minlength=6)
    assert sorted(drawn) == [2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("batch", [2, 7])
def test_in_recorded_order_a_sequence_goes_on_with_the_next_request(batch: int) -> None:
    lengths = [10, 4, 8, 6, 12]  # the second has template tokens only
    offsets, position = trace(lengths)
    steps = decode_rows(offsets, position, batch, 60, np.random.default_rng(0), recorded=True)
    rows = np.array(list(steps))
    request = np.searchsorted(offsets, rows, side="right") - 1
    turn = [0, 2, 3, 4] * 60
    assert request[0].tolist() == turn[:batch]
    taken = batch
    for before, after, rows_after in zip(rows[:-1], request[1:], rows[1:], strict=True):
        for sequence in np.flatnonzero(np.isin(before + 1, offsets)):
            assert after[sequence] == turn[taken]
            assert position[rows_after[sequence]] == FIRST_POSITION
            taken += 1
    assert taken > batch + 8  # twice around


def test_the_same_seed_gives_the_same_rows() -> None:
    offsets, position = trace([20, 30, 40])
    first, second = (
        np.array(list(decode_rows(offsets, position, 7, 50, np.random.default_rng(3)))) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_a_trace_of_template_tokens_only_is_refused() -> None:
    offsets, position = trace([4, 2])
    with pytest.raises(TraceError, match="position 4 or later"):
        next(decode_rows(offsets, position, 1, 1, np.random.default_rng(0)))


def test_positions_that_do_not_start_at_zero() -> None:
    """A recording that starts at position 100 has no template tokens to skip."""
    offsets, position = np.array([0, 3]), np.array([100, 101, 102], np.int32)
    rows = np.array(list(decode_rows(offsets, position, 200, 1, np.random.default_rng(0))))
    assert set(rows.ravel()) == {0, 1, 2}


def test_gather_takes_rows_in_order() -> None:
    ids = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    rows = np.array([2, 0, 2])
    np.testing.assert_array_equal(gather_ids(ids, rows), ids[rows].transpose(1, 0, 2).astype(np.int16))
    weights = (ids / 24).astype(np.float16)
    np.testing.assert_array_equal(gather_weights(weights, rows), weights[rows].transpose(1, 0, 2))


def test_home_offsets() -> None:
    assert home_offsets(np.array([2, 0, 3])).tolist() == [0, 2, 2, 5]


def routing(lengths: list[int]) -> RoutingTrace:
    """A trace whose ids do not matter."""
    _, position = trace(lengths)
    request = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    ids = np.tile(np.array([[[0, 1]]], np.uint8), (len(position), 1, 1))
    meta = TraceMeta("none", 2, 2, (0,), "", "")
    return RoutingTrace(meta, ids, None, request, position, None, None, None, (), None, None)


def workload(**fields: Any) -> Workload:
    return validate(Workload, {"context": 100, "steps": 6} | fields)


def test_prefill_takes_requests_from_their_first_token_to_their_last() -> None:
    replayed = routing([7, 12, 9])
    steps = list(batches(replayed, workload(phase="prefill", tokens_per_gpu=[5, 0, 8]), 3, seed=1))
    for rank, chunk in ((0, 5), (2, 8)):
        own = [slice(step.offsets_G[rank], step.offsets_G[rank + 1]) for step in steps]
        rows = np.concatenate([step.row_T[part] for step, part in zip(steps, own, strict=True)])
        last = np.concatenate([step.last_T[part] for step, part in zip(steps, own, strict=True)])
        ends = np.isin(rows + 1, replayed.request_offsets)
        # Inside a request the rows follow each other; after its end another one starts at its first token.
        assert (rows[1:][~ends[:-1]] == rows[:-1][~ends[:-1]] + 1).all()
        assert np.isin(rows[1:][ends[:-1]], replayed.request_offsets).all()
        chunk_ends = np.arange(1, len(rows) + 1) % chunk == 0
        np.testing.assert_array_equal(last, ends | chunk_ends)
    for step in steps:
        assert step.tokens_G.tolist() == [5, 0, 8]
        assert step.prefill_T.all()
        # 100 tokens were cached before each request; a token attends to itself and all before it.
        np.testing.assert_array_equal(step.keys_T, replayed.position_T[step.row_T] + 101)


def test_prefill_in_recorded_order_takes_the_next_request_on_whichever_rank() -> None:
    replayed = routing([7, 12, 9, 5])
    for ranks in (1, 3):
        asked = workload(phase="prefill", tokens_per_gpu=5, order="recorded", steps=4 * ranks)
        begun = []
        for step in batches(replayed, asked, ranks, seed=1):
            first_T = np.isin(step.row_T, replayed.request_offsets)
            begun += np.searchsorted(replayed.request_offsets, step.row_T[first_T]).tolist()
        # Ranks are in the midst of the first requests when the run starts.
        expected = [(ranks + i) % 4 for i in range(len(begun))]
        assert len(begun) >= 2
        assert begun == expected


def test_mixed_steps_put_a_chunk_beside_the_sequences_of_each_rank() -> None:
    asked = workload(phase="mixed", tokens_per_gpu=[2, 3], prefill_tokens_per_gpu=4, context=[10, 20])
    for step in batches(routing([30, 40]), asked, 2, seed=0):
        assert step.offsets_G.tolist() == [0, 6, 13]
        assert step.prefill_T.tolist() == [False] * 2 + [True] * 4 + [False] * 3 + [True] * 4
        assert step.keys_T[~step.prefill_T].tolist() == [10.0] * 2 + [20.0] * 3
        assert step.last_T[~step.prefill_T].all()
        decoding = step.keys_G(lambda keys: np.minimum(keys, 15.0), prefill=False)
        assert decoding.tolist() == [20.0, 45.0]


def test_decoding_is_the_same_beside_a_chunk() -> None:
    """Each purpose draws from its own stream of randomness."""
    replayed = routing([30, 40, 50])
    alone = list(batches(replayed, workload(tokens_per_gpu=4), 2, seed=5))
    asked = workload(phase="mixed", tokens_per_gpu=4, prefill_tokens_per_gpu=3)
    beside = list(batches(replayed, asked, 2, seed=5))
    for one, two in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(one.row_T, two.row_T[~two.prefill_T])


def test_distributions_are_drawn_once_for_ranks_and_for_sequences() -> None:
    asked = workload(
        tokens_per_gpu={"uniform": [0, 50]}, context={"lognormal": {"mean": 1000, "sigma": 1.0}}, steps=3
    )
    first, second, third = batches(routing([300]), asked, 64, seed=2)
    assert first.tokens_G.min() < 10
    assert first.tokens_G.max() > 40
    assert first.keys_T.mean() == pytest.approx(1000, rel=0.2)
    assert len(set(first.keys_T)) > 100
    for later in (second, third):
        np.testing.assert_array_equal(first.offsets_G, later.offsets_G)
        np.testing.assert_array_equal(first.keys_T, later.keys_T)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens_per_gpu": -1}, "tokens_per_gpu: must be from 0"),
        ({"tokens_per_gpu": True}, "tokens_per_gpu: must be a whole number, a list"),
        ({"tokens_per_gpu": "8"}, "tokens_per_gpu: must be a whole number, a list"),
        ({"tokens_per_gpu": 0}, "tokens_per_gpu: must be at least 1 on some rank"),
        ({"tokens_per_gpu": [0, 0]}, "tokens_per_gpu: must be at least 1 on some rank"),
        ({"tokens_per_gpu": {"uniform": [5, 2]}}, "tokens_per_gpu.uniform: must ascend"),
        ({"tokens_per_gpu": {"uniform": [1, 2], "each": 3}}, "exactly one way"),
        ({"tokens_per_gpu": {"normal": 3}}, "unknown key"),
        (
            {"tokens_per_gpu": 1, "context": {"lognormal": {"mean": 0, "sigma": 1}}},
            "mean: must be greater than 0",
        ),
        ({"tokens_per_gpu": 1, "phase": "mixed"}, "prefill_tokens_per_gpu: is missing"),
        (
            {"tokens_per_gpu": 1, "prefill_tokens_per_gpu": 3},
            "prefill_tokens_per_gpu: belongs to phase mixed",
        ),
        ({"tokens_per_gpu": 1, "graph_sizes": [0]}, "graph_sizes[0]: must be at least 1"),
    ],
)
def test_bad_amounts_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        workload(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "amount", [5, [1, 2], {"uniform": [1, 9]}, {"lognormal": {"mean": 3.5, "sigma": 0.5}}]
)
def test_amounts_are_written_as_they_were_given(amount: Any) -> None:
    assert workload(tokens_per_gpu=amount).model_dump(mode="json")["tokens_per_gpu"] == amount
