"""Clocks of ranks, compared over gloo: one clock, and one that is set wrong and runs too fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from executor.measuring.clock import Offsets, aligned, measure_offsets
from executor.ranks.process_group import Group
from tests.executor.processes import run_processes

pytestmark = pytest.mark.executor

_clock = time.perf_counter_ns
AHEAD_NS = 5_000_000_000


def on_each_rank() -> tuple[Offsets | None, Offsets | None, int]:
    """(offsets of one clock, offsets when rank 1's is ahead, ranks)."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    group = Group(rank, ranks, torch.device("cpu"), dist.group.WORLD)
    shared = measure_offsets(group)
    ahead: Callable[[], int] = lambda: _clock() + AHEAD_NS * (rank == 1)  # noqa: E731
    with mock.patch.object(time, "perf_counter_ns", ahead):
        return shared, measure_offsets(group), ranks


def test_offsets_between_processes(tmp_path: Path) -> None:
    (shared, apart, ranks), *others = run_processes(3, tmp_path, "cpu", on_each_rank)
    assert others == [(None, None, 3)] * 2
    assert shared is not None
    assert apart is not None
    # Processes of one machine share a clock, and are found to.
    assert shared.offset_G.tolist() == [0] * ranks
    assert shared.error_G[0] == 0
    assert (shared.error_G[1:] > 0).all()
    assert abs(apart.offset_G[1] + AHEAD_NS) <= apart.error_G[1]
    assert apart.offset_G[2] == 0


def offsets(at: int, by: int) -> Offsets:
    return Offsets(np.array([0, at]), np.array([0, by]), np.zeros(2, np.int64))


@given(
    st.lists(st.integers(0, 10**12), min_size=2), st.integers(-(10**9), 10**9), st.integers(-(10**6), 10**6)
)
def test_alignment_keeps_the_order_of_times(times: list[int], by: int, drift: int) -> None:
    clock_N = np.array(sorted(times), np.int64)
    found = aligned(clock_N, 1, offsets(0, by), offsets(10**12, by + drift))
    assert (np.diff(found) >= 0).all()
    assert (np.abs(found - clock_N - by) <= abs(drift) + 1).all()
