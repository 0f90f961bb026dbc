"""What decides which experts a byte visits, on routing that is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the small model needs the extra executor")

from experiments.tiny_moe.dependence import dependence_tables, similarity
from tests.traces.random_traces import random_trace

pytestmark = pytest.mark.executor


def test_where_the_byte_decides_alone_its_tokens_are_equal() -> None:
    """Layer 0 goes by the byte, layer 1 by chance."""
    trace = random_trace(layers=(0, 1), experts=8, top_k=2, lengths=(4000,))
    byte_T = np.arange(4000) % 4
    rng = np.random.default_rng(1)
    trace.ids_TLK[:, 0] = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])[byte_T]
    trace.ids_TLK[:, 1] = np.argsort(rng.random((4000, 8)), axis=1)[:, :2]
    by_byte, by_chance = similarity(trace, byte_T)
    assert by_byte.same_byte == 1.0
    assert by_byte.at_random == pytest.approx(1 / 4, abs=0.03)
    # Two tokens share both of 2 experts with probability 1/28, one with 12/28.
    expected = 1 / 28 + 12 / 28 / 3
    assert by_chance.same_byte == pytest.approx(expected, abs=0.02)
    assert by_chance.at_random == pytest.approx(expected, abs=0.02)


def test_the_tables_have_a_row_for_each_layer_and_domain() -> None:
    trace = random_trace(layers=(0, 1), lengths=(30, 30), categories=("code", "prose"))
    trace = replace(trace, category_T=np.repeat(np.array([0, 1], np.int32), 30))
    layers, domains = dependence_tables(trace, np.arange(60) % 7)
    assert (layers.row_count, domains.row_count) == (2, 2)


def test_bytes_that_come_once_are_left_out() -> None:
    trace = random_trace(layers=(0,), experts=4, top_k=1, lengths=(3,))
    trace.ids_TLK[:, 0, 0] = [0, 1, 0]
    (found,) = similarity(trace, np.array([7, 9, 7]))
    assert found.same_byte == 1.0
