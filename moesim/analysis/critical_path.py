"""Where a step's time goes: the chain of spans that ends last, traced back to the start of the step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from traces.timeline import PHASES, Timeline

_WAIT = PHASES.index("wait")
_COLLECTIVES = (PHASES.index("dispatch"), PHASES.index("combine"))


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
    begin = float(timeline.start_s_N[chosen].min())
    now = float(timeline.end_s_N[chosen].max())
    worked = (timeline.phase_N[chosen] != _WAIT) & (timeline.end_s_N[chosen] > timeline.start_s_N[chosen])
    work = timeline.select(chosen[worked])
    # By end; of equal ends the lowest rank last, where a look-up from the right finds it.
    work = work.select(np.lexsort((-work.rank_N, work.end_s_N)))
    start, end, phase = work.start_s_N.tolist(), work.end_s_N.tolist(), work.phase_N.tolist()
    rank = work.rank_N.tolist()
    of_rank = {each: np.flatnonzero(work.rank_N == each) for each in set(rank)}
    end_of_rank = {each: work.end_s_N[own] for each, own in of_rank.items()}

    seconds = np.zeros(len(PHASES))
    at = len(work) - 1
    while at >= 0:
        seconds[_WAIT] += now - end[at]
        seconds[phase[at]] += end[at] - start[at]
        now = start[at]
        if phase[at] in _COLLECTIVES:
            at = int(np.searchsorted(work.end_s_N, now, side="right")) - 1
        else:
            found = int(np.searchsorted(end_of_rank[rank[at]], now, side="right"))
            at = int(of_rank[rank[at]][found - 1]) if found else -1
    seconds[_WAIT] += now - begin
    return seconds
