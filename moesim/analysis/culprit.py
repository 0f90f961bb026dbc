"""Which rank holds up most layers, and why: the rows of ``stragglers`` in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from moesim.analysis.record import Count, Fraction, Record

# A rank that is last in fewer of the layers is not the one to look at.
_LEAST_SHARE = 0.2

Cause = Literal["tokens", "weights", "attention", "network", "hardware", "none"]


class Straggler(Record):
    """Who holds up an MoE layer most often, and why.

    Attributes:
        layer, rank, share: ``share`` is the part of the steps in which this rank was the last.
        load, time: its assignments and its experts' seconds in these steps, over the mean of ranks.
        lost_s: seconds of a step that ranks wait in this layer, on average.
        cause: ``none`` if less than 1 % of the layer's time is lost. If most of it is lost before the
            dispatch, ``attention`` or ``network``: whether the last to enter had more to compute, or left
            the layer before late. If most is lost after it, ``network`` if the rank's tokens arrived late,
            else ``weights`` if its excess of activated slots makes up at least half of its excess of time
            and lies closer to it than its excess of assignments, else ``tokens``. ``hardware`` instead, if
            the rank is one of the faulty ones and its assignments do not explain its time.
        expert, expert_share, expert_load: its hottest expert, that expert's part of the rank's assignments,
            and its assignments there over the mean rank's, of all steps.
    """

    layer: Count
    rank: Count
    share: Fraction
    load: Fraction
    time: Fraction
    lost_s: float
    cause: Cause
    expert: Count
    expert_share: Fraction
    expert_load: Fraction = 0.0


class Culprit(Record):
    """The rank that holds up most layers.

    Attributes:
        rank: None where it changes from layer to layer.
        layers: in how many it is the straggler; where it changes, how many have one.
        cause: what is behind most of the time lost in them.
    """

    rank: Count | None
    layers: Count
    cause: Cause


def culprit(stragglers: Sequence[Straggler]) -> Culprit | None:
    """The rank that is the straggler of most layers, of equal ones the lowest; None where no layer has one.

    Example: three layers wait for GPU 7, the last for nobody.

    >>> of = {"share": 1.0, "load": 2.0, "time": 1.5, "expert": 0, "expert_share": 0.5}
    >>> rows = [Straggler(layer=i, rank=7, cause="tokens", lost_s=1e-4, **of) for i in range(3)]
    >>> culprit([*rows, Straggler(layer=3, rank=2, cause="none", lost_s=0.0, **of)])
    Culprit(rank=7, layers=3, cause='tokens')
    """
    named = [row for row in stragglers if row.cause != "none"]
    if not named:
        return None
    layers = Counter(row.rank for row in named)
    rank, most = min(layers.items(), key=lambda item: (-item[1], item[0]))
    if len(layers) > 1 and most < _LEAST_SHARE * len(stragglers):
        return Culprit(rank=None, layers=len(named), cause=next(iter(lost_by_cause(named))))
    own = [row for row in named if row.rank == rank]
    return Culprit(rank=rank, layers=most, cause=next(iter(lost_by_cause(own))))


def lost_by_cause(stragglers: Sequence[Straggler]) -> dict[Cause, float]:
    """Seconds per step that the mean GPU waits for the straggler, by cause, largest first."""
    lost: Counter[Cause] = Counter()
    for row in stragglers:
        lost[row.cause] += row.lost_s  # type: ignore[assignment]  # a counter of seconds
    return dict(lost.most_common())
