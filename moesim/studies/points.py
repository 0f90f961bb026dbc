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
from moesim.spec.vary import Vary, check_once

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
    check_once([vary.keys for vary in varied])
    count = math.prod(len(vary.rows) for vary in varied)
    if count > MAX_POINTS:
        raise SpecError(f"more than {MAX_POINTS} combinations", file="--vary", got=count)
    base = load_scenario(name, overrides)
    points = []
    for rows in itertools.product(*(vary.rows for vary in varied)):
        chosen = [setting for vary, row in zip(varied, rows, strict=True) for setting in vary.overrides(row)]
        scenario = load_scenario(name, [*overrides, *chosen])
        points.append(Point({each.key: each.value for each in chosen}, scenario))
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
