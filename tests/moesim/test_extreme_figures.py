"""Figures at the ends of what is allowed, and beyond: strict JSON, or one message."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_text import to_yaml
from tests.moesim.command import moesim

EXTREMES = (0, 1e-320, 1e-6, 1, 1e6, 1 << 31, 1e18, 1e24, 1e308)
MOST = {"profile": 1, "cluster": 4, "faults": len(EXTREMES)}


def numbers(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every number in a tree."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield at
    elif isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from numbers(value[key], (*at, key))


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("part", ["profile", "cluster", "faults"])
def test_no_figure_leads_to_infinity(here: Path, part: str) -> None:
    (here / "f.yaml").write_text(
        (here / "s.yaml").read_text() + "faults: [{gpu: 1, clock: 0.5, from_s: 0.1}, {jitter: 0.1}]\n"
    )
    resolved = load_scenario("f.yaml").resolved()
    ran = refused = 0
    ends = itertools.cycle(EXTREMES)  # a few for each figure: all of them would take minutes
    for at in numbers(resolved[part], (part,)):
        for extreme in itertools.islice(ends, MOST[part]):
            changed = copy.deepcopy(resolved)
            where = changed
            for key in at[:-1]:
                where = where[key]
            where[at[-1]] = extreme
            (here / "x.yaml").write_text(to_yaml(changed))
            done = moesim("run", "x.yaml", "--json")
            if done.code:
                assert done.code == 2
                assert done.err.count("\n") == 1
                refused += 1
            else:
                assert strict(done.out)["metrics"]["step_time_s"]["mean"] > 0
                ran += 1
    assert ran > 5
    assert refused > 5


def test_a_run_of_centuries_is_refused(here: Path) -> None:
    done = moesim(
        "run", "s.yaml", "-s", "cluster.gpu.memory_bandwidth=1 B/s", "-s", "profile.gemm.memory=1e-6"
    )
    assert done.code == 2
    assert "takes more than thirty years for 1 step: a rate is too low (got " in done.err
