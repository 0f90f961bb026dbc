"""What became of the assignments that a router asked for.

An assignment is *kept* if its token visits its expert, in whichever place. What is missing is *rerouted* if
another expert, that the token had not asked for, stands for it: the one in its place, else the next one that
stands for none. What is then still missing is *dropped*, and experts that stand for none are *added*.

Axes: T tokens, K experts per token before, J after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.base.jit import jit

_IDS = 1 << 15
"""Ids of experts are int16."""


class Counts(NamedTuple):
    """Assignments, and the gate weights of those asked for and of the dropped ones, if they are known."""

    kept: int
    rerouted: int
    dropped: int
    added: int
    mass: float | None
    mass_lost: float | None


def count(
    before_TK: npt.NDArray[np.int16],
    after_TJ: npt.NDArray[np.int16],
    weights_TK: npt.NDArray[np.float32] | None,
) -> Counts:
    """Tell apart the assignments of ``before_TK``, whose weights are ``weights_TK``, by ``after_TJ``.

    The first token loses expert 1 and gets 2 for it; the second keeps its expert, in another place, and
    gets one more; the third loses its only one.

    >>> before_TK = np.array([[0, 1], [3, -1], [5, -1]], np.int16)
    >>> after_TJ = np.array([[0, 2], [4, 3], [-1, -1]], np.int16)
    >>> weights_TK = np.array([[0.75, 0.25], [1, 0], [1, 0]], np.float32)
    >>> count(before_TK, after_TJ, weights_TK)
    Counts(kept=2, rerouted=1, dropped=1, added=1, mass=3.0, mass_lost=1.0)
    """
    return _counted(_count, before_TK, after_TJ, weights_TK)


def count_in_place(
    before_TK: npt.NDArray[np.int16],
    after_TK: npt.NDArray[np.int16],
    weights_TK: npt.NDArray[np.float32] | None,
) -> Counts:
    """As :func:`count`, twice as fast, where what is new stands in the place of what it stands for.

    So it is where no token gets an expert that it had asked for in another place, and none both loses an
    assignment and gets one in an empty place.

    >>> count_in_place(np.array([[0, 1, 5]], np.int16), np.array([[0, 2, -1]], np.int16), None)
    Counts(kept=1, rerouted=1, dropped=1, added=0, mass=None, mass_lost=None)
    """
    return _counted(_count_in_place, before_TK, after_TK, weights_TK)


def _counted(
    counting: Callable[..., tuple[int, int, int, int, float, float]],
    before_TK: npt.NDArray[np.int16],
    after_TJ: npt.NDArray[np.int16],
    weights_TK: npt.NDArray[np.float32] | None,
) -> Counts:
    known = weights_TK is not None
    kept, rerouted, dropped, added, mass, lost = counting(
        before_TK, after_TJ, weights_TK if weights_TK is not None else np.zeros(before_TK.shape, np.float32)
    )
    return Counts(kept, rerouted, dropped, added, mass if known else None, lost if known else None)


@jit
def _count_in_place(
    before_TK: Any, after_TK: Any, weights_TK: Any
) -> tuple[int, int, int, int, float, float]:
    """As :func:`count_in_place`; masses are summed in row order in double precision."""
    before_N, after_N, weight_N = before_TK.reshape(-1), after_TK.reshape(-1), weights_TK.reshape(-1)
    wished = served = kept = both = 0
    mass = lost = 0.0
    # Two loops: the compiler makes vector code of the first; the sums of the second have their order.
    for at in range(len(before_N)):
        wished += before_N[at] >= 0
        served += after_N[at] >= 0
        kept += (before_N[at] >= 0) & (after_N[at] == before_N[at])
        both += (before_N[at] >= 0) & (after_N[at] >= 0)
    for at in range(len(before_N)):
        weight = np.float64(weight_N[at])
        mass += weight if before_N[at] >= 0 else 0.0
        lost += weight if (before_N[at] >= 0) & (after_N[at] < 0) else 0.0
    return kept, both - kept, wished - both, served - both, mass, lost


@jit
def _count(before_TK: Any, after_TJ: Any, weights_TK: Any) -> tuple[int, int, int, int, float, float]:
    """As :func:`count`; masses are summed in row order in double precision."""
    T, K = before_TK.shape
    J = after_TJ.shape[1]
    # The last token that wished, or visits, each expert: faster than looking through its places. Entry 0 is
    # that of no expert, which stands everywhere; unsigned indices need no test for negative values.
    wisher_E, visitor_E = np.full(_IDS + 1, -1, np.int32), np.full(_IDS + 1, -1, np.int32)
    gone_K = np.empty(K, np.bool_)
    kept = rerouted = dropped = added = 0
    mass = lost = 0.0
    for token in range(T):
        wished = served = missing = 0
        for place in range(J):
            visitor_E[np.uint64(after_TJ[token, place] + 1)] = token
            served += after_TJ[token, place] >= 0
        visitor_E[0] = token
        for place in range(K):
            before, weight = before_TK[token, place], np.float64(weights_TK[token, place])
            gone_K[place] = visitor_E[np.uint64(before + 1)] != token
            missing += gone_K[place]
            wished += before >= 0
            mass += weight if before >= 0 else 0.0
        stays = wished - missing
        new = served - stays
        kept += stays
        rerouted += min(missing, new)
        dropped += max(missing - new, 0)
        added += max(new - missing, 0)
        # Where some are rerouted and others dropped: those first in whose place a new expert stands.
        if 0 < new < missing:
            for place in range(K):
                wisher_E[np.uint64(before_TK[token, place] + 1)] = token
            wisher_E[0] = token
            for place in range(min(J, K)):
                instead = wisher_E[np.uint64(after_TJ[token, place] + 1)] != token
                new -= gone_K[place] & instead
                gone_K[place] &= not instead
        for place in range(K):
            weight = np.float64(weights_TK[token, place])
            lost += weight if gone_K[place] & (new <= 0) else 0.0
            new -= gone_K[place]
    return kept, rerouted, dropped, added, mass, lost
