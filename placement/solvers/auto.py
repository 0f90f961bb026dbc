"""``auto``: one solver after another, and the best of what they find."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from placement.problem.errors import PlacementError
from placement.problem.problem import Problem
from placement.solvers.solution import NO_CLOCK, Search, Solution, Solve


def portfolio(members: Mapping[str, Solve]) -> Solve:
    """A solver that asks ``members`` in turn, the quick ones first, and is never worse than the best of them.

    A member that cannot obey the problem's rules is passed over. Where time runs out, members that have not
    begun are left out, and the limit is reported. An interruption (Ctrl-C) ends the search with the best so
    far, if there is any. The bound is the largest that any of them has proven, layer by layer.
    """

    def auto(problem: Problem, search: Search = NO_CLOCK) -> Solution:
        """Ask all members.

        Raises:
            PlacementError: none of them can obey the rules; what the last one says.
        """
        started = time.perf_counter()
        best: Solution | None = None
        failure: PlacementError | None = None

        def offer(found: Solution) -> None:
            nonlocal best
            bound_L = found.bound_L if best is None else np.maximum(best.bound_L, found.bound_L)
            if best is None or found.cost < best.cost:
                placement = replace(found.placement, origin=f"auto: {found.solver}")
                best = replace(found, placement=placement, solver="auto", prove=lambda: bound_L)
                if search.report is not None:
                    search.report(replace(best, wall_s=time.perf_counter() - started))
            else:
                best = replace(best, prove=lambda: bound_L)

        cut_short = interrupted = False
        for solve in members.values():
            left = _left(search, started)
            if best is not None and (best.gap <= 0.0 or (left is not None and left <= 0.0)):
                cut_short = best.gap > 0.0
                break
            try:
                found = solve(problem, replace(search, seconds=left, report=offer))
                offer(found)
                cut_short, interrupted = found.limit_reached, found.interrupted
            except PlacementError as error:
                failure = error
            except KeyboardInterrupt:
                if best is None:
                    raise
                cut_short = interrupted = True
            if interrupted:
                break
        if best is None:
            assert failure is not None  # there are members, and each either found something or failed
            raise failure
        wall_s = time.perf_counter() - started
        return replace(best, limit_reached=cut_short, interrupted=interrupted, wall_s=wall_s)

    return auto


def _left(search: Search, started: float) -> float | None:
    """Seconds left, None without a clock."""
    if search.seconds is None:
        return None
    return max(0.0, search.seconds - (time.perf_counter() - started))
