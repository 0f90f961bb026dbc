"""The points of a what-if: every combination of some values, each a scenario of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.errors import MoesimError, SpecError
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from moesim.spec.vary import Vary, check_once

MAX_POINTS = 10_000


@dataclass(frozen=True)
class Point:
    """One combination.

    Attributes:
        vary: what was varied.
        scenario: what it makes, or why it makes none.
    """

    vary: dict[str, Any]
    scenario: Scenario | MoesimError


def plan(
    name: str, overrides: Sequence[Override], varied: Sequence[Vary]
) -> tuple[Scenario | MoesimError, list[Point]]:
    """The scenario itself, or why it is none, and every combination.

    Raises:
        MoesimError: no combination makes a scenario, a key varies twice, or there are too many.
    """
    check_once([vary.keys for vary in varied])
    count = math.prod(len(vary.rows) for vary in varied)
    if count > MAX_POINTS:
        raise SpecError(f"more than {MAX_POINTS} combinations", file="--vary", got=count)
    base = _load(name, overrides)
    points = []
    for rows in itertools.product(*(vary.rows for vary in varied)):
        chosen = [setting for vary, row in zip(varied, rows, strict=True) for setting in vary.overrides(row)]
        points.append(Point({each.key: each.value for each in chosen}, _load(name, [*overrides, *chosen])))
    if not any(isinstance(point.scenario, Scenario) for point in points):
        # What is wrong with the scenario itself is what to mend first.
        for scenario in (base, *(point.scenario for point in points)):
            if isinstance(scenario, MoesimError):
                raise scenario
    return base, points


def _load(name: str, overrides: Sequence[Override]) -> Scenario | MoesimError:
    try:
        return load_scenario(name, overrides)
    except MoesimError as error:
        return error


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
