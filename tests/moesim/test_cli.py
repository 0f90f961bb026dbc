"""What the commands promise, from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim import __version__
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from tests.moesim.command import files, moesim
from tests.tolerance import rounding
from tests.traces.random_traces import random_trace
from traces.timeline import PHASES

pytestmark = pytest.mark.usefixtures("here")

ROOT = Path(__file__).parents[2]


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from moesim.commands.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("demo", "run", "whatif", "trace", "presets"))
    loaded = set(done.stderr.split())
    heavy = {"numpy", "numba", "pydantic", "pyarrow", "simpy", "joblib", "yaml", "rich.progress"}
    assert "typer" in loaded
    assert not loaded & heavy


def test_help_shows_brackets_that_are_no_markup() -> None:
    assert "moesim[cluster]" in moesim("whatif", "--help").out


def test_version() -> None:
    assert moesim("--version") == (0, f"moesim {__version__}\n", "")


def test_without_arguments_help_is_shown() -> None:
    done = moesim()
    assert "Usage" in done.out
    assert not done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["run"],
        ["run", "s.yaml", "--nope"],
        ["whatif", "s.yaml"],
        ["trace", "info", "t.parquet", "--ep", "0"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = moesim(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error" in done.err
    assert "Traceback" not in done.err


RUN_FILES = {
    "scenario.yaml",
    "result.json",
    "timeline.parquet",
    "work.parquet",
    "timeline.json.gz",
    "report.html",
}


def test_run_prints_a_table_and_writes_what_it_promises(here: Path) -> None:
    done = moesim("run", "s.yaml", "-o", "new/out")
    assert done.code == 0
    assert "step time" in done.out
    assert max(len(line) for line in done.out.splitlines()) <= 80
    assert done.err == "report: new/out/report.html\n"
    assert files(here / "new" / "out").keys() >= RUN_FILES


def test_run_json_is_one_object_with_the_promised_keys() -> None:
    done = moesim("run", "s.yaml", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("\n") == 1
    result = json.loads(done.out)
    assert result["format"] == "moesim.result/1"
    assert result.keys() >= {"scenario", "metrics", "attribution", "provenance"}
    metrics = result["metrics"]
    assert metrics["step_time_s"].keys() == {"mean", "p50", "p95", "p99"}
    assert metrics["layer_time_s"].keys() == {"mean", "p95"}
    assert metrics["phase_time_s"].keys() == set(PHASES)
    assert sum(metrics["phase_time_s"].values()) == pytest.approx(
        metrics["step_time_s"]["mean"], rel=rounding(10**6)
    )
    assert metrics["straggler_ratio"].keys() == {"assignments", "experts_time", "dispatch_bytes"}
    assert metrics["gpu_memory_bytes"].keys() == {"max", "mean"}
    assert metrics["wished"] == 1 == metrics["kept"] + metrics["rerouted"] + metrics["dropped"]
    assert metrics.keys() >= {
        "tokens_per_s",
        "balancedness",
        "added",
        "gate_mass_lost",
        "effective_capacity_factor",
        "cross_node_bytes",
    }
    parts = {"homes_s", "experts_s", "traffic_s"}
    terms = {term: cost_s for term, cost_s in result["attribution"].items() if term not in parts}
    assert sum(terms.values()) == pytest.approx(metrics["step_time_s"]["mean"], rel=rounding(10**6))
    assert result["attribution"].keys() == parts | {
        "hardware_s",
        "migration_s",
        "imbalance_s",
        "network_s",
        "overhead_s",
        "ideal_s",
    }
    assert result["provenance"].keys() >= {
        "moesim",
        "numpy",
        "numba",
        "seed",
        "trace_sha256",
        "profile",
        "resolution",
        "wall_s",
    }


def test_the_resolved_scenario_runs_again_to_the_same_result(here: Path) -> None:
    options = ["-s", "trace={file: t.parquet}", "-s", "placement={solver: greedy, slots: 12}"]
    drop = "routing={policy: drop, capacity_factor: 1.0}"
    assert moesim("run", "s.yaml", *options, "-s", drop, "-o", "one").code == 0
    assert moesim("run", "one/scenario.yaml", "-o", "two").code == 0
    first, second = (json.loads((here / name / "result.json").read_text()) for name in ("one", "two"))
    for result in (first, second):
        result["provenance"] |= {"wall_s": 0, "command": ""}
    assert first == second
    assert first["metrics"]["dropped"] > 0
    same = ("scenario.yaml", "timeline.parquet", "work.parquet", "timeline.json.gz", "placement.json")
    one, two = files(here / "one"), files(here / "two")
    assert all(one[name] == two[name] for name in same)


def test_whatif_lays_every_combination_beside_the_scenario(here: Path) -> None:
    arguments = ["whatif", "s.yaml", "-s", "routing={policy: drop, capacity_factor: 2.0}"]
    arguments += ["--vary", "placement=[linear, greedy]", "--vary", "routing.capacity_factor=[1, 1.5, 2.0]"]
    done = moesim(*arguments, "--json", "-o", "out")
    assert (done.code, done.err) == (0, "report: out/report.html\n")
    comparison = json.loads(done.out)
    assert comparison.keys() >= {"baseline", "points"}
    assert [point["vary"] for point in comparison["points"]] == [
        {"placement": placement, "routing.capacity_factor": factor}
        for placement in ("linear", "greedy")
        for factor in (1, 1.5, 2.0)
    ]
    assert all(
        point.keys() >= {"vary", "metrics", "attribution", "speedup"} for point in comparison["points"]
    )
    assert comparison["points"][2]["speedup"] == 1  # the scenario itself
    assert files(here / "out").keys() >= {"whatif.json", "report.html", "points"}
    assert moesim(*arguments).out.count("\n") > 7


def test_presets_as_json_and_as_tables() -> None:
    kinds = [
        "models",
        "gpus",
        "clusters",
        "scenarios",
        "traces",
        "generators",
        "routing",
        "replicas",
        "networks",
        "profiles",
        "solvers",
    ]
    everything = json.loads(moesim("presets", "--json").out)
    assert list(everything) == kinds
    for kind in kinds:
        assert json.loads(moesim("presets", kind, "--json").out) == {kind: everything[kind]}
        text = moesim("presets", kind).out
        assert all(row["name"] in text for row in everything[kind])


def test_trace_info_and_convert(here: Path) -> None:
    trace = random_trace(layers=(1, 2), lengths=(12,) * 6)
    offsets = np.arange(0, 73, 12)
    np.savez("foreign.npz", topk_ids=trace.ids_TLK, request_offsets=offsets)
    done = moesim("trace", "convert", "foreign.npz", "--experts", 8, "-o", "converted.parquet")
    assert done.code == 0
    assert done.out == "converted.parquet: 72 tokens of 6 requests, 2 layers, 8 experts, top-2\n"
    facts = json.loads(moesim("trace", "info", "converted.parquet", "--ep", 4, "--json").out)
    assert (facts["tokens"], facts["requests"]) == (72, 6)
    assert "72 tokens of 6 requests" in moesim("trace", "info", "converted.parquet").out


def test_a_foreign_recording_replays_as_the_scenarios_model() -> None:
    trace = random_trace(layers=(1, 2), lengths=(12,) * 6)
    np.savez("foreign.npz", topk_ids=trace.ids_TLK, request_offsets=np.arange(0, 73, 12))
    assert moesim("run", "s.yaml", "-s", "trace={file: foreign.npz}").code == 0


def test_demo_takes_no_arguments(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    # The real one simulates DeepSeek-V3 seven times; here its preset is replaced by the tiny scenario.
    load = load_scenario

    def tiny(name: str, overrides: Any = ()) -> Scenario:
        assert name == "demo"
        # It has no expert groups, and 288 slots are more than 8 experts on 4 GPUs can fill.
        fitting = [each for each in overrides if each.loc != ("placement",) or isinstance(each.value, str)]
        return load("s.yaml", [Override(("trace",), {"sample": True}), *fitting])

    monkeypatch.setattr("moesim.spec.scenario.load_scenario", tiny)
    monkeypatch.setattr("moesim.studies.points.load_scenario", tiny)
    done = moesim("demo", "-o", "out")
    assert done.code == 0
    assert "step time" in done.out
    assert "speedup" in done.out
    assert files(here / "out").keys() >= RUN_FILES | {"whatif.json"}
