"""Timelines for tests: from rows, and any valid one."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import strategies as st

from traces.timeline import PHASES, Timeline

Row = tuple[int, int, int, int, int, int, int, float, float, int, int, int]


def timeline_of(rows: list[Row], run: str = "r") -> Timeline:
    """Columns from rows (repeat, step, micro batch, layer, rank, stream, phase, start, end, counts)."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * 12
    types = [np.int32] * 5 + [np.int8] * 2 + [np.float64] * 2 + [np.int64] * 3
    names = [field.name for field in dataclasses.fields(Timeline) if field.name != "run"]
    arrays = {
        name: np.array(column, dtype) for name, column, dtype in zip(names, columns, types, strict=True)
    }
    return Timeline(run, **arrays)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Any valid timeline: lanes interleaved in the file, spans that touch, spans of no length."""
    rows: list[Row] = []
    clock: dict[tuple[int, int, int], float] = {}
    small = st.integers(0, 3)
    length = st.one_of(st.just(0.0), st.floats(0, 1e-3, allow_subnormal=False))
    for _ in range(draw(st.integers(0, 30))):
        lane = draw(small), draw(small), draw(st.integers(0, 1))
        start = clock.get(lane, draw(st.floats(-1, 1))) + draw(length)
        end = start + draw(length)
        clock[lane] = end
        count = st.integers(0, 2**62)
        phase = draw(st.integers(0, len(PHASES) - 1))
        place = lane[0], draw(small), draw(small), draw(st.integers(-1, 60)), lane[1], lane[2]
        rows.append((*place, phase, start, end, draw(count), draw(count), draw(count)))
    return timeline_of(rows, draw(st.text(max_size=8).filter(lambda text: text.isprintable())))
