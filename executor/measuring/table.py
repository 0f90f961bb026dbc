"""What a run took, as lines for a terminal."""

from __future__ import annotations

import numpy as np

from traces.timeline import PHASES, Timeline


def table(timeline: Timeline) -> str:
    """Milliseconds of a step that each rank spends in each phase; medians over the repeats."""
    G, P = int(timeline.rank_N.max()) + 1, len(PHASES)
    repeats, steps = np.unique(timeline.repeat_N), int(timeline.step_N.max()) + 1
    repeat_N = np.searchsorted(repeats, timeline.repeat_N)
    cell_N = (repeat_N * G + timeline.rank_N) * P + timeline.phase_N
    total = np.bincount(cell_N, timeline.end_s_N - timeline.start_s_N, minlength=len(repeats) * G * P)
    ms_GP = 1e3 * np.median(total.reshape(len(repeats), G, P), axis=0) / steps
    shown = np.flatnonzero(ms_GP.any(axis=0)).tolist()
    rows = [["rank", *(PHASES[phase] for phase in shown)]]
    rows += [[str(rank), *(f"{ms_P[phase]:.3f}" for phase in shown)] for rank, ms_P in enumerate(ms_GP)]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, wide, strict=True)) for row in rows]
    lines.append(f"milliseconds of a step of {timeline.run}; medians over {len(repeats)} repeats")
    return "\n".join(lines)
