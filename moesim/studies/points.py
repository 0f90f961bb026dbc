"""The points of a what-if: every combination of some values, each a scenario of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.errors import SpecError
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from moesim.spec.vary import Vary

MAX_POINTS = 10_000


@dataclass(frozen=True)
class Point:
    """One combination: what was varied, and the scenario that it makes."""

    vary: dict[str, Any]
    scenario: Scenario


def plan(name: str, overrides: Sequence[Override], varied: Sequence[Vary]) -> tuple[Scenario, list[Point]]:
    """The scenario itself and every combination; all are checked before any is run.

    Raises:
        MoesimError: a combination breaks a rule, or there are too many.
    """
    keys = [vary.key for vary in varied]
    for key in keys:
        if keys.count(key) > 1:
            raise SpecError("is varied more than once: put all values into one list", file=f"--vary {key}")
    count = math.prod(len(vary.values) for vary in varied)
    if count > MAX_POINTS:
        raise SpecError(f"more than {MAX_POINTS} combinations", file="--vary", got=count)
    base = load_scenario(name, overrides)
    points = []
    for values in itertools.product(*(vary.values for vary in varied)):
        chosen = {each.key: value for each, value in zip(varied, values, strict=True)}
        settings = [Override(tuple(key.split(".")), value, "--vary") for key, value in chosen.items()]
        points.append(Point(chosen, load_scenario(name, [*overrides, *settings])))
    return base, points


def demo_points() -> list[Point]:
    """What the demo lays beside its scenario: drop, reroute, placements without and with copies, together."""
    drop, reroute = ({"policy": policy, "capacity_factor": 2.0} for policy in ("drop", "reroute"))
    copies = {"solver": "eplb", "slots": 288}
    varies: list[dict[str, Any]] = [
        {"routing": drop},
        {"routing": reroute},
        {"placement": "eplb"},
        {"placement": copies},
        {"placement": copies, "routing": reroute},
    ]
    return [
        Point(vary, load_scenario("demo", [Override((key,), value) for key, value in vary.items()]))
        for vary in varies
    ]
