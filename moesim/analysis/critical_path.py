"""Where a step's time goes: the chain of spans that ends last, traced back to the start of the step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from traces.timeline import PHASES, Timeline

_WAIT = PHASES.index("wait")
_COLLECTIVES = (PHASES.index("dispatch"), PHASES.index("combine"))


def critical_path(timeline: Timeline, step: int) -> NDArray[np.float64]:
    """Seconds of each phase on the critical path of one step; they sum to the length of the step.

    The path starts at the span that ends last. A collective begins when the last rank has entered it, so
    it leads to the work, of whatever rank, that ended last before that; any other span leads to its
    predecessor on the same rank. Ties go to the lowest rank. Time that no span covers counts as wait.

    Args:
        timeline: spans of one run and repeat.
        step: which step.

    Returns:
        One value for each of ``PHASES``.
    """
    chosen = np.flatnonzero(timeline.step_N == step)
    spans = timeline.select(chosen[np.lexsort((timeline.start_s_N[chosen], timeline.rank_N[chosen]))])
    rank_N, start_N, end_N = spans.rank_N.tolist(), spans.start_s_N.tolist(), spans.end_s_N.tolist()
    phase_N = spans.phase_N.tolist()
    # Work by the time at which it ends; of equal times the lowest rank last, where a look-up finds it.
    work = np.flatnonzero((spans.phase_N != _WAIT) & (spans.end_s_N > spans.start_s_N))
    work = work[np.lexsort((-spans.rank_N[work], spans.end_s_N[work]))]
    work_end = spans.end_s_N[work]

    seconds = np.zeros(len(PHASES))
    begin, now = float(spans.start_s_N.min()), float(spans.end_s_N.max())
    at: int | None = int(work[-1]) if len(work) else None
    while at is not None:
        seconds[_WAIT] += now - end_N[at]
        seconds[phase_N[at]] += end_N[at] - start_N[at]
        now = start_N[at]
        if phase_N[at] in _COLLECTIVES:
            found = int(np.searchsorted(work_end, now, side="right"))
            at = int(work[found - 1]) if found else None
        else:
            at = at - 1 if at > 0 and rank_N[at - 1] == rank_N[at] else None
    seconds[_WAIT] += now - begin
    return seconds
