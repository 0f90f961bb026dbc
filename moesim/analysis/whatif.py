"""What if: every combination of some values, each simulated and laid beside the scenario itself."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from moesim import __version__
from moesim.analysis.result import Result, simulate_scenario
from moesim.errors import SpecError
from moesim.simulation.deployment import load_trace
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from moesim.spec.yaml_source import parse_yaml, show_loc
from traces.files import write_text

MAX_POINTS = 10_000


@dataclass(frozen=True)
class Vary:
    """One ``--vary KEY=[V1, V2]``: a key and the values that it takes in turn."""

    key: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> Vary:
        """From ``KEY=[V1, V2, …]``, the list in YAML.

        >>> Vary.parse("routing.capacity_factor=[1.0, 1.5]")
        Vary(key='routing.capacity_factor', values=(1.0, 1.5))
        """
        key, equals, values = text.partition("=")
        option = f"--vary {key}"
        if not equals or not all(key.split(".")):
            raise SpecError("must read KEY=[V1, V2, …]", file="--vary", got=text)
        found = parse_yaml(values, option).value
        if not isinstance(found, list) or not found:
            raise SpecError("must be a list of values, such as [1.0, 1.5]", file=option, got=values)
        return cls(key, tuple(found))


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
    count = 1
    for vary in varied:
        count *= len(vary.values)
    if count > MAX_POINTS:
        raise SpecError(f"more than {MAX_POINTS} combinations", file="--vary", got=count)
    base = load_scenario(name, overrides)
    points = []
    for values in itertools.product(*(vary.values for vary in varied)):
        chosen = {each.key: value for each, value in zip(varied, values, strict=True)}
        settings = [Override(tuple(key.split(".")), value, "--vary") for key, value in chosen.items()]
        points.append(Point(chosen, load_scenario(name, [*overrides, *settings])))
    return base, points


def compare(
    base: Scenario,
    points: Sequence[Point],
    *,
    jobs: int = 1,
    store: Path | None = None,
    baseline: Result | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Simulate the base and all points; format ``moesim.whatif/1``.

    Args:
        jobs: worker processes; the result does not depend on it.
        store: a folder in which finished points survive an interruption and are not run again.
        baseline: the result of the base, where it is known already.
        progress: called after each simulation, the base's included.
    """
    # The base runs here and first: it compiles, and the workers find everything in the cache.
    baseline = baseline or _stored(base, store)
    progress()
    work = (delayed(_stored)(point.scenario, store) for point in points)
    results: Iterator[Result] = Parallel(n_jobs=jobs, return_as="generator")(work)
    step_s = baseline["metrics"]["step_time_s"]["mean"]
    rows = []
    for point, result in zip(points, results, strict=True):
        rows.append(
            {
                "vary": point.vary,
                "metrics": result["metrics"],
                "attribution": result["attribution"],
                "speedup": step_s / result["metrics"]["step_time_s"]["mean"],
            }
        )
        progress()
    return {"format": "moesim.whatif/1", "baseline": baseline, "points": rows}


def _stored(scenario: Scenario, store: Path | None) -> Result:
    """The result from the store if it is there, else simulated and stored."""
    if store is None:
        return simulate_scenario(scenario)[1]
    path = store / f"{_key(scenario)}.json"
    if path.exists():
        found: Result = json.loads(path.read_text(encoding="utf-8"))
        return found
    result = simulate_scenario(scenario)[1]
    write_text(path, json.dumps(result, allow_nan=False))
    return result


def _key(scenario: Scenario) -> str:
    """What determines a result: the resolved scenario, the trace's content and this version."""
    parts: Mapping[str, Any] = {
        "scenario": scenario.resolved(),
        "trace": load_trace(scenario).digest(),
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def label(vary: Mapping[str, Any]) -> str:
    """A combination as text: ``placement greedy, routing.capacity_factor 1.5``."""
    return ", ".join(f"{show_loc(tuple(key.split('.')))} {value}" for key, value in vary.items())


def demo_points() -> list[Point]:
    """What the demo lays beside its scenario: drop, a better placement, copies of experts, and all three."""
    drop = {"policy": "drop", "capacity_factor": 1.5}
    replicated = {"solver": "greedy", "slots": 288}
    varies: list[dict[str, Any]] = [
        {"routing": drop},
        {"placement": "greedy"},
        {"placement": replicated},
        {"placement": replicated, "routing": drop},
    ]
    return [
        Point(vary, load_scenario("demo", [Override((key,), value) for key, value in vary.items()]))
        for vary in varies
    ]
