"""What is printed at the end of a run by hand."""

from __future__ import annotations

import numpy as np

from executor.measuring.table import table
from traces.timeline import PHASES, Timeline


def test_a_table_by_hand() -> None:
    """Two repeats of two steps; rank 1's experts take 4 ms, then 8 ms, in both steps together."""
    rows = [  # repeat, step, rank, phase, start and end in ms
        (0, 0, 0, "router", 0, 1),
        (0, 0, 1, "experts", 1, 4),
        (0, 1, 1, "experts", 5, 6),
        (1, 0, 0, "router", 0, 3),
        (1, 1, 1, "experts", 3, 11),
    ]
    repeat, step, rank, phase, start, end = zip(*rows, strict=True)
    zeros = np.zeros(len(rows), np.int64)
    timeline = Timeline(
        "small",
        repeat_N=np.array(repeat, np.int32),
        step_N=np.array(step, np.int32),
        micro_batch_N=zeros.astype(np.int32),
        layer_N=zeros.astype(np.int32),
        rank_N=np.array(rank, np.int32),
        stream_N=zeros.astype(np.int8),
        phase_N=np.array([PHASES.index(each) for each in phase], np.int8),
        start_s_N=np.array(start) / 1e3,
        end_s_N=np.array(end) / 1e3,
        assignments_N=zeros,
        unique_tokens_N=zeros,
        bytes_N=zeros,
    )
    assert table(timeline).splitlines() == [
        "rank  router  experts",
        "   0   1.000    0.000",
        "   1   0.000    3.000",
        "milliseconds of a step of small; medians over 2 repeats",
    ]
