"""Decode batches: what a server that follows requests token by token would see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import TraceError
from moesim.simulation.batch import FIRST_POSITION, decode_rows, gather_ids, gather_weights, home_offsets


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
