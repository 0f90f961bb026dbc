"""Which rank holds up most layers, and why: the rows of ``stragglers`` in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# A rank that is last in fewer of the layers is not the one to look at.
_LEAST_SHARE = 0.2


def culprit(stragglers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The rank that is the straggler of most layers, of equal ones the lowest; None where no layer has one.

    Returns:
        ``rank``, or None where it changes from layer to layer; ``layers``, in how many it is (where it
        changes, how many have a straggler); ``cause``, what is behind most of the time lost in them.

    Example: three layers wait for GPU 7, the last for nobody.

    >>> rows = [{"rank": 7, "cause": "tokens", "lost_s": 1e-4}] * 3
    >>> culprit([*rows, {"rank": 2, "cause": "none", "lost_s": 0.0}])
    {'rank': 7, 'layers': 3, 'cause': 'tokens'}
    """
    named = [row for row in stragglers if row["cause"] != "none"]
    if not named:
        return None
    layers = Counter(row["rank"] for row in named)
    rank, most = min(layers.items(), key=lambda item: (-item[1], item[0]))
    if len(layers) > 1 and most < _LEAST_SHARE * len(stragglers):
        return {"rank": None, "layers": len(named), "cause": next(iter(lost_by_cause(named)))}
    own = [row for row in named if row["rank"] == rank]
    return {"rank": rank, "layers": most, "cause": next(iter(lost_by_cause(own)))}


def lost_by_cause(stragglers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds per step that the mean GPU waits for the straggler, by cause, largest first."""
    lost: Counter[str] = Counter()
    for row in stragglers:
        lost[row["cause"]] += row["lost_s"]
    return dict(lost.most_common())
