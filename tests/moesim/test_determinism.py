"""The same scenario gives the same bytes, for any process and any number of workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moesim.analysis.result import simulate_scenario
from moesim.report.folder import write_run
from moesim.spec.override import Override
from moesim.spec.scenario import load_scenario
from tests.moesim.command import files, moesim

pytestmark = pytest.mark.usefixtures("here")

ROOT = Path(__file__).parents[2]
DROP = ["-s", "routing={policy: drop, capacity_factor: 1.0}", "-s", "placement={solver: greedy, slots: 12}"]


def contents(folder: Path) -> dict[str, Any]:
    """All files; JSON decoded, and without the one value that may differ."""
    found: dict[str, Any] = dict(files(folder))
    for name, content in found.items():
        if name.endswith(".json") and content is not None:
            found[name] = _without_wall(json.loads(content))
    return found


def _without_wall(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_wall(part) for key, part in value.items() if key != "wall_s"}
    return [_without_wall(part) for part in value] if isinstance(value, list) else value


def elsewhere(*arguments: str, hash_seed: str) -> None:
    """``moesim ARGUMENTS`` in a process of its own, with another order of sets and no threads in common."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from moesim.commands.cli import main; main()"
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    subprocess.run(
        [sys.executable, "-c", code, str(ROOT), *arguments], env=environment, check=True, capture_output=True
    )


def test_a_run_in_another_process_writes_the_same_bytes(here: Path) -> None:
    assert moesim("run", "s.yaml", *DROP, "-o", "one").code == 0
    elsewhere("run", "s.yaml", *DROP, "-o", "two", hash_seed="1")
    one, two = contents(here / "one"), contents(here / "two")
    assert len(one) > 5
    assert one == two


def test_whatif_does_not_depend_on_its_workers(here: Path) -> None:
    arguments = ["whatif", "s.yaml", "-s", "trace={file: t.parquet}"]
    arguments += ["--vary", "seed=[1, 2]", "--vary", "workload.steps=[1, 2]"]
    assert moesim(*arguments, "-o", "one").code == 0
    assert moesim(*arguments, "-o", "two", "--jobs", 2).code == 0
    one, two = contents(here / "one"), contents(here / "two")
    assert len(one) > 7
    assert one == two


def test_results_do_not_depend_on_what_ran_before(here: Path) -> None:
    asked = load_scenario("s.yaml")
    _, first = simulate_scenario(asked)
    simulate_scenario(load_scenario("s.yaml", [Override(("seed",), 9)]))
    _, second = simulate_scenario(asked)
    assert _without_wall(first.plain()) == _without_wall(second.plain())


def test_another_seed_gives_another_run(here: Path) -> None:
    seeds = ([Override(("seed",), seed)] for seed in (0, 1))
    first, second = (simulate_scenario(load_scenario("s.yaml", seed))[1] for seed in seeds)
    assert first.metrics != second.metrics


def test_a_run_written_twice_is_the_same(here: Path) -> None:
    done, result = simulate_scenario(load_scenario("s.yaml"))
    for name in ("one", "two"):
        write_run(here / name, done, result)
    assert files(here / "one") == files(here / "two")
