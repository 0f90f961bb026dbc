"""Where a step's time goes: the chain of spans that ends last, traced back to the start of the step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.base.jit import jit
from traces.timeline import PHASES, Timeline

_WAIT = PHASES.index("wait")
_DISPATCH, _COMBINE = PHASES.index("dispatch"), PHASES.index("combine")


def critical_path(timeline: Timeline, step: int) -> NDArray[np.float64]:
    """Seconds of each phase on the critical path of one step; they sum to the length of the step.

    The path starts at the work that ends last. A collective begins when the last rank has entered it, so
    it leads to the work, of whatever rank, that ended last before that; any other work leads to what
    ended last before it on its own rank, on either stream. Ties go to the lowest rank. Time in between
    counts as wait.

    Args:
        timeline: spans of one run and repeat.
        step: which step.

    Returns:
        One value for each of ``PHASES``.
    """
    chosen = np.flatnonzero(timeline.step_N == step)
    start_N, end_N, rank_N = timeline.start_s_N[chosen], timeline.end_s_N[chosen], timeline.rank_N[chosen]
    phase_N = timeline.phase_N[chosen]
    # By end; of equal ends the lowest rank last, where who comes from the right finds it.
    order_N = np.lexsort((-rank_N, end_N))
    order_N = order_N[(phase_N[order_N] != _WAIT) & (end_N[order_N] > start_N[order_N])]
    seconds = np.zeros(len(PHASES))
    if len(chosen):
        begin, end = float(start_N.min()), float(end_N.max())
        start_N, end_N, rank_N = start_N[order_N], end_N[order_N], rank_N[order_N]
        _trace_back(start_N, end_N, phase_N[order_N], rank_N, begin, end, seconds)
    return seconds


@jit
def _trace_back(
    start_N: Any, end_N: Any, phase_N: Any, rank_N: Any, begin: float, now: float, seconds: Any
) -> None:
    at = len(start_N) - 1
    while at >= 0:
        phase, rank = phase_N[at], rank_N[at]
        seconds[_WAIT] += now - end_N[at]
        seconds[phase] += end_N[at] - start_N[at]
        now = start_N[at]
        anyones = phase in (_DISPATCH, _COMBINE)
        # What it leads to ended no later than it began.
        while at >= 0 and (end_N[at] > now or not (anyones or rank_N[at] == rank)):
            at -= 1
    seconds[_WAIT] += now - begin
