"""The critical path of worked-out and of random steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from moesim.analysis.critical_path import critical_path
from moesim.analysis.cube import Cube, layer_times, max_over_mean, step_times
from moesim.analysis.metrics import timeline_metrics
from moesim.simulation.operations import Operation
from moesim.simulation.recording import Recording
from placement.judging.balancedness import sglang
from tests.moesim.programs import LAYERS, chains, run
from tests.tolerance import rounding
from traces.timeline import PHASES, Timeline


def recorded(operations: list[Operation], ranks: int) -> Timeline:
    recording = Recording("path", sorted({op.layer for op in operations if op.layer >= 0}))
    recording.add_step(0, run(operations, ranks), operations)
    return recording.timeline()


def test_by_hand() -> None:
    """Layer 0 waits for rank 1's experts, layer 1 for rank 0's attention; all else is equal."""
    path = dict(zip(PHASES, critical_path(recorded(LAYERS, 2), 0).tolist(), strict=True))
    assert path == {
        "attention": 1.0 + 3.0,
        "router": 0.5 + 0.5,
        "dispatch": 4.0 + 2.25,
        "experts": 6.0 + 1.0,
        "combine": 4.0 + 2.0,
        "other": 1.0,
        "shared_expert": 0.0,
        "dense": 0.0,
        "wait": 0.0,
    }


@given(operations=chains())
def test_sums_to_the_step_and_never_waits(operations: list[Operation]) -> None:
    timeline = recorded(operations, 4)
    path = critical_path(timeline, 0)
    assert path.sum() == pytest.approx(step_times(timeline)[0], rel=rounding(1000))
    assert path[PHASES.index("wait")] == pytest.approx(0.0, abs=rounding(1000) * path.sum())


def test_a_gap_that_no_span_covers_is_a_wait() -> None:
    """As a measured timeline has them, where the host was busy between two kernels."""
    timeline = recorded(LAYERS, 2)
    later = timeline.phase_N == PHASES.index("other")
    moved = Timeline(
        **{
            **timeline.__dict__,
            "start_s_N": timeline.start_s_N + 0.5 * later,
            "end_s_N": timeline.end_s_N + 0.5 * later,
        }
    )
    path = critical_path(moved, 0)
    assert path[PHASES.index("wait")] == 0.5
    assert path.sum() == 25.75


def test_layer_times_run_from_end_to_end() -> None:
    timeline = recorded(LAYERS, 2)
    assert layer_times(timeline, Cube.of(timeline)).tolist() == [[15.5, 24.25 - 15.5]]


def test_metrics_of_the_hand_worked_step() -> None:
    metrics = timeline_metrics(recorded(LAYERS, 2), tokens_per_step=101)
    assert metrics["step_time_s"] == {"mean": 25.25, "p50": 25.25, "p95": 25.25, "p99": 25.25}
    assert metrics["tokens_per_s"] == pytest.approx(4.0)
    assert sum(metrics["phase_time_s"].values()) == pytest.approx(25.25)
    # Layer 0: 6 over the mean of 2 and 6; layer 1: even.
    assert metrics["straggler_ratio"]["experts_time"] == pytest.approx((1.5 + 1.0) / 2)
    # Received in the dispatch: 1 and 4 bytes, then 2 and 2.
    assert metrics["straggler_ratio"]["dispatch_bytes"] == pytest.approx((4 / 2.5 + 1.0) / 2)


def test_balancedness_is_sglangs() -> None:
    load = np.array([[[3.0, 1.0], [2.0, 2.0]]])
    assert sglang(load) == pytest.approx(((2 + 1e-5) / (3 + 1e-5) + 1) / 2, rel=rounding(4))
    assert sglang(np.zeros((1, 1, 4))) == 1.0
    assert max_over_mean(load) == pytest.approx((1.5 + 1.0) / 2)
