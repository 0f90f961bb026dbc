"""What to call the runs of a comparison, their keys and what they have more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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


def vary(point: Outcome) -> str:
    """A point's varied keys and values, ``key=value`` after another, as one would write them again."""
    return named_vary(point.vary)


def named_vary(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """Keys, or their ``names``, and values."""
    return ", ".join(f"{(names or {}).get(key, key)}={brief(value)}" for key, value in values.items())


@dataclass(frozen=True)
class Varied:
    """What tells the points of a comparison apart.

    Attributes:
        heads: by key, its short name: as few of its last parts as no other key has.
        points: of each outcome, its values under these keys.
        same: what all points have, which tells none apart.
    """

    heads: dict[str, str]
    points: list[dict[str, Any]]
    same: dict[str, Any]

    @classmethod
    def of(cls, comparison: Comparison) -> Varied:
        """Of a comparison's outcomes; mappings with the same keys in all of them are taken apart."""
        points = _apart([point.vary for point in comparison.outcomes])
        keys = list(dict.fromkeys(key for values in points for key in values))
        same = {}
        if len(points) > 1:
            alike = (key for key in keys if all(_has(each, key, points[0].get(key)) for each in points))
            same = {key: points[0][key] for key in alike}
        # Something has to name the points.
        same = {} if len(same) == len(keys) else same
        apart = [key for key in keys if key not in same]
        told = [{key: value for key, value in each.items() if key not in same} for each in points]
        return cls(dict(zip(apart, _short(apart, keys), strict=True)), told, same)

    def names(self) -> list[str]:
        """Each outcome by what it has of its own."""
        return [named_vary(values, self.heads) for values in self.points]

    def shared(self) -> str:
        """What all points have, in a sentence; empty where there is nothing."""
        return f"Every point has {named_vary(self.same)}." if self.same else ""


def _has(values: dict[str, Any], key: str, value: Any) -> bool:
    return key in values and bool(values[key] == value)


def _apart(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Values that are mappings with parts that all points have, as keys of their own."""
    inside = {key for key in (points[0] if points else ()) if _shared([each.get(key) for each in points])}

    def apart(key: str, value: Any) -> dict[str, Any]:
        return {f"{key}.{part}": inner for part, inner in value.items()} if key in inside else {key: value}

    return [
        {name: inner for key, value in values.items() for name, inner in apart(key, value).items()}
        for values in points
    ]


def _shared(values: list[Any]) -> bool:
    """Whether they are mappings with the same keys, one of them with the same value in all."""
    if not all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        return False
    return len(values) > 1 and any(all(value[key] == values[0][key] for value in values) for key in values[0])


def _short(keys: list[str], among: list[str]) -> list[str]:
    """As few of the last parts of each key as no other has.

    >>> _short(["a.b.c", "d.b.c", "e"], ["a.b.c", "d.b.c", "e"])
    ['a.b.c', 'd.b.c', 'e']
    >>> _short(["a.b.c", "a.d.c"], ["a.b.c", "a.d.c"])
    ['b.c', 'd.c']
    """
    endings = Counter(ending for key in among for ending in _endings(key))
    return [next((each for each in _endings(key) if endings[each] == 1), key) for key in keys]


def _endings(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def speedup(point: Outcome) -> str:
    """A speedup as a factor: 1.31×."""
    return f"{point.speedup:.2f}×"


def steps(count: float) -> str:
    """A number of steps, one that has begun counting whole.

    >>> steps(0.2), steps(41.3)
    ('1 step', '42 steps')
    """
    return plural(max(1, math.ceil(count)), "step")
