"""Counted work compared with simulated work, whatever the order of its rows."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.analysis.counts import same_counts
from traces.timeline import WorkTable

small = st.integers(0, 2)
rows = st.lists(st.tuples(small, small, small, st.integers(0, 1), small, small, small, small), max_size=8)
Rows = list[tuple[int, ...]]


def work_of(rows: Rows) -> WorkTable:
    columns = list(zip(*rows, strict=True)) if rows else [()] * 8
    types = [np.int32, np.int32, np.int8, np.int8, np.int32, np.int32, np.int64, np.int64]
    return WorkTable(*(np.array(values, dtype) for values, dtype in zip(columns, types, strict=True)))


def totals(rows: Rows) -> dict[tuple[int, ...], tuple[int, int]]:
    count: Counter[tuple[int, ...]] = Counter()
    size: Counter[tuple[int, ...]] = Counter()
    for *about, copies, moved in rows:
        count[tuple(about)] += copies
        size[tuple(about)] += moved
    return {about: (count[about], size[about]) for about in count}


@given(rows, rows)
def test_same_as_summing_row_by_row(first: Rows, second: Rows) -> None:
    assert same_counts(work_of(first), work_of(second)) == (totals(first) == totals(second))


@given(rows.flatmap(lambda some: st.tuples(st.just(some), st.permutations(some))))
def test_the_order_of_rows_says_nothing(both: tuple[Rows, Rows]) -> None:
    assert same_counts(work_of(both[0]), work_of(both[1]))


@pytest.mark.parametrize("column", [field.name for field in dataclasses.fields(WorkTable)])
def test_every_column_counts(column: str) -> None:
    work = work_of([(0, 1, 2, 0, 1, 0, 5, 40), (0, 1, 2, 0, 0, 1, 7, 56)])
    changed = getattr(work, column).copy()
    changed[1] += 1
    assert not same_counts(work, dataclasses.replace(work, **{column: changed}))
