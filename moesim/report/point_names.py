"""What to call the runs of a comparison, their keys and what they have more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from moesim.analysis.ranking import tried
from moesim.analysis.result_file import Compared, Comparison, Outcome
from moesim.spec.question import brief, plural


def named_runs(comparison: Comparison) -> list[tuple[str, Compared]]:
    """The baseline and the tried points, each with what to call it in a sentence."""
    points = [(f"with {vary(point)}", point) for _, point in tried(comparison)]
    named = baseline_named(comparison)
    return [(f"with {named}" if comparison.infeasible else named, comparison.baseline), *points]


def baseline_named(comparison: Comparison) -> str:
    """What others are compared with: the scenario as asked, or what it yielded to."""
    if comparison.infeasible is None:
        return "as asked"
    return next((vary(point) for point in comparison.outcomes if point.as_asked), "the first that can be")


def vary(point: Outcome, names: Mapping[str, str] | None = None) -> str:
    """A point's varied keys, or their ``names``, and values, ``key=value`` after another."""
    return named_vary(point.vary, names)


def named_vary(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """Varied keys and their values."""
    return ", ".join(f"{(names or {}).get(key, key)}={brief(value)}" for key, value in values.items())


def varied_keys(comparison: Comparison) -> dict[str, str]:
    """Every varied key in order of appearance, and its short name: the last part where that is unique."""
    keys = list(dict.fromkeys(key for point in comparison.outcomes for key in point.vary))
    last = Counter(key.rsplit(".", 1)[-1] for key in keys)
    return {key: short if last[short := key.rsplit(".", 1)[-1]] == 1 else key for key in keys}


def speedup(point: Outcome) -> str:
    """A speedup as a factor: 1.31×."""
    return f"{point.speedup:.2f}×"


def steps(count: float) -> str:
    """A number of steps, one that has begun counting whole.

    >>> steps(0.2), steps(41.3)
    ('1 step', '42 steps')
    """
    return plural(max(1, math.ceil(count)), "step")
