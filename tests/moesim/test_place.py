"""``moesim place`` from end to end, on traces and load tables."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from moesim.deployment.deployment import deploy
from moesim.report.place_table import place_tables
from moesim.simulation.run import run
from moesim.spec.override import Override
from moesim.spec.scenario import load_scenario
from placement.files.native import read_placement
from placement.judging.migration import plan_migration
from placement.problem.problem import Problem
from placement.problem.rules import moves_L
from placement.solvers.solvers import SOLVERS
from tests.moesim.command import moesim, refused
from tests.tolerance import rounding
from traces.statistics import expert_loads
from traces.trace_file import read_trace

pytestmark = pytest.mark.usefixtures("here")

KEYS = {
    "balancedness",
    "max_load",
    "lower_bound",
    "gap",
    "cross_node_fraction",
    "moved_experts",
    "solver",
    "limit_reached",
    "wall_s",
    "layers",
    "baselines",
    "held_out",
}


def place(*arguments: object) -> dict[str, Any]:
    done = moesim("place", *arguments, "--json")
    assert done.code == 0, done.err
    value: dict[str, Any] = json.loads(done.out)
    return value


def logical_count(path: str, windows: int = 1) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Loads in SGLang's form: four layers, of which the first is dense."""
    load_WLE = np.random.default_rng(3).integers(1, 100, (windows, 4, 8))
    load_WLE[:, 0] = 0
    Path(path).write_text(json.dumps({"logical_count": load_WLE.tolist()}), encoding="utf-8")
    return load_WLE[:, 1:]


def test_a_trace_is_placed_on_the_first_requests_and_judged_on_the_last() -> None:
    value = place("t.parquet", "--gpus", 4, "--solver", "greedy", "-o", "p.json", "--hold-out", "0.5")
    assert value.keys() >= KEYS
    assert (value["fitted_on"], value["held_out"]["what"]) == ("requests 0 to 2", "requests 3 to 5")
    placement, trace = read_placement("p.json"), read_trace("t.parquet")
    assert placement.origin == "greedy, fitted on requests 0 to 2"
    for part, requests in ((value, (0, 3)), (value["held_out"], (3, 6))):
        load_LG = placement.gpu_load_LG(expert_loads(trace.select_requests(*requests)))
        assert part["max_load"] == pytest.approx(load_LG.max(axis=1).sum())
        assert part["balancedness"] == pytest.approx(
            ((load_LG.mean(axis=1) + 1e-5) / (load_LG.max(axis=1) + 1e-5)).mean()
        )
    problem = Problem.of(expert_loads(trace.select_requests(0, 3)), 4, layers=trace.meta.layers)
    found = SOLVERS["greedy"].solve(problem)
    assert value["lower_bound"] == pytest.approx(found.bound)
    assert value["gap"] == pytest.approx(value["max_load"] / value["lower_bound"] - 1)
    assert [layer["layer"] for layer in value["layers"]] == [1, 2]
    assert sum(layer["max_load"] for layer in value["layers"]) == pytest.approx(value["max_load"])
    assert list(value["baselines"]) == list(value["held_out"]["baselines"]) == ["linear", "eplb"]


def test_the_same_bytes_again() -> None:
    for name in ("a.json", "b.json"):
        place("t.parquet", "--gpus", 4, "--slots", 12, "--solver", "swap", "-o", name)
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_auto_is_no_worse_than_the_baselines() -> None:
    value = place("t.parquet", "--gpus", 4, "--slots", 10, "--nodes", 2)
    assert value["cost"] <= min(row["cost"] for row in value["baselines"].values())
    assert value["lower_bound"] <= value["cost"]
    assert 0 < value["cross_node_fraction"] < 1


def test_load_tables_have_windows_and_no_tokens() -> None:
    load_WLE = logical_count("load.json", windows=5)
    value = place("load.json", "--gpus", 4, "--nodes", 2, "--hold-out", "0.4", "--solver", "linear")
    assert (value["fitted_on"], value["held_out"]["what"]) == ("windows 0 to 2", "windows 3 to 4")
    assert value["cross_node_fraction"] is None
    for part, windows in ((value, load_WLE[:3]), (value["held_out"], load_WLE[3:])):
        load_LG = windows.sum(axis=0).reshape(3, 4, 2).sum(axis=2)
        assert part["max_load"] == load_LG.max(axis=1).sum()
    apart = place("load.json", "--gpus", 4, "--windows", 3, "--hold-out", "0.4", "--solver", "linear")
    load_WLG = load_WLE[:3].reshape(3, 3, 4, 2).sum(axis=3)
    assert apart["max_load"] == pytest.approx(load_WLG.max(axis=2).mean(axis=0).sum())
    worst = place(
        "load.json", "--gpus", 4, "--windows", 3, "--hold-out", "0.4", "--solver", "linear", "--worst-window"
    )
    assert worst["max_load"] == load_WLG.max(axis=2).max(axis=0).sum()


def test_layers_that_a_file_numbers_are_not_asked_for_again() -> None:
    """SGLang's counts have a row for every hidden layer; a load table keeps their number."""
    counts = [[0.0] * 8, [8.0, 1, 2, 3, 4, 5, 6, 7.5], [1, 1, 1, 1, 1, 1, 1, 9], [0] * 8]
    Path("counts.json").write_text(json.dumps({"logical_count": counts}))
    assert moesim("trace", "convert", "counts.json", "-o", "counts.parquet").code == 0
    for source in ("counts.json", "counts.parquet"):
        place(source, "--gpus", 2, "--format", "sglang", "-o", "map.json")
        rows = json.loads(Path("map.json").read_text())["physical_to_logical_map"]
        assert len(rows) == 4
        assert all(sorted(row) == list(range(8)) for row in rows)


def grouped_model(groups: int) -> str:
    """A model of four layers and eight experts in groups, in a file of its own."""
    model = {
        "name": "grouped",
        "hidden": 64,
        "layers": 4,
        "vocab": 100,
        "first_dense": 1,
        "dense_width": 64,
        "attention": {"heads": 4, "kv_heads": 4, "head_dim": 16},
        "experts": {"count": 8, "top_k": 2, "width": 32, "groups": groups, "top_groups": -(-groups // 2)},
    }
    Path("grouped.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
    return "grouped.yaml"


def test_eplb_is_what_servers_run_and_the_table_says_which() -> None:
    logical_count("counts.json")
    ask = ("counts.json", "--gpus", 4, "--nodes", 2, "--slots", 12, "--solver", "eplb")
    unknown, known = place(*ask), place(*ask, "--model", grouped_model(4))
    assert unknown["eplb"] == {"variant": "global", "groups": None}
    assert known["eplb"] == {"variant": "hierarchical", "groups": 4}
    assert known["balancedness"] < unknown["balancedness"]
    tables = {
        name: moesim("place", *ask, *more).out
        for name, more in (("global", ()), ("hierarchical", ("--model", "grouped.yaml")))
    }
    for name, table in tables.items():
        assert f"eplb ({name})" in table
    assert "eplb: global, since nothing tells the model's expert groups (--model)" in tables["global"]
    shown = " ".join(tables["hierarchical"].split())
    assert "eplb: hierarchical, as servers run it: 4 expert groups stay on one of 2 nodes each" in shown


def test_any_solver_keeps_groups_together_where_it_is_told() -> None:
    logical_count("counts.json")
    ask = ("counts.json", "--gpus", 4, "--nodes", 2, "--slots", 12, "--solver", "swap", "-o", "p.json")
    place(*ask, "--model", grouped_model(4), "--hierarchical")
    placement = read_placement("p.json")
    for slot_expert_S in placement.slot_expert_LS:
        node_S = placement.slot_gpu_S // 2
        assert all(len({*node_S[slot_expert_S // 2 == group].tolist()}) == 1 for group in range(4))
    assert refused("place", *ask[:-2], "--hierarchical") == (
        "--hierarchical: needs a model with expert groups; name it (--model)"
    )
    ungrouped = refused("place", *ask[:-2], "--hierarchical", "--model", grouped_model(1))
    assert ungrouped == "--hierarchical: there are no expert groups to keep together: the model has none"


def test_an_export_says_how_a_server_loads_it_and_loses_no_copy() -> None:
    """Nearly all load is one expert's: eplb gives a GPU two copies of it."""
    counts = [[0] * 4, [97, 1, 1, 1]]
    Path("hot.json").write_text(json.dumps({"logical_count": counts}), encoding="utf-8")
    ask = ("place", "hot.json", "--gpus", 2, "--slots", 8, "-o", "map.json", "--format")
    done = moesim(*ask, "sglang", "--solver", "eplb")
    assert "load it with: python -m sglang.launch_server --model-path MODEL --ep-size 2" in done.err
    Path("map.json").unlink()
    assert "GPU 0 must hold one copy of expert 0 only" in moesim(*ask, "vllm-ascend", "--solver", "eplb").err
    assert not Path("map.json").exists()
    assert moesim(*ask, "vllm-ascend").code == 0
    (layer,) = json.loads(Path("map.json").read_text())["layer_list"]
    assert all(len({*device["device_expert"]}) == 4 for device in layer["device_list"])


def test_windows_are_as_large_as_what_is_kept_back() -> None:
    load_WLE = logical_count("load.json", windows=8)
    value = place("load.json", "--gpus", 4, "--solver", "linear")
    assert (value["fitted_on"], value["windows"]) == ("windows 0 to 5 in 3 parts", 3)
    assert value["held_out"]["what"] == "windows 6 to 7"
    load_WLG = load_WLE[:6].reshape(3, 2, 3, 4, 2).sum(axis=(1, 4))
    assert value["max_load"] == pytest.approx(load_WLG.max(axis=2).mean(axis=0).sum())
    whole = place("load.json", "--gpus", 4, "--solver", "linear", "--hold-out", 0)
    assert whole["windows"] == 4
    assert place("load.json", "--gpus", 4, "--solver", "linear", "--hold-out", 0.9)["windows"] == 1


def test_one_window_leaves_nothing_to_keep_back() -> None:
    logical_count("load.json")
    value = place("load.json", "--gpus", 4, "--solver", "greedy")
    assert (value["fitted_on"], value["held_out"]) == ("window 0", None)
    assert any("nothing was kept back" in note for note in value["notes"])


def test_gpus_that_hold_nothing_are_spoken_of() -> None:
    """8 experts, once on each of as many GPUs, and on twice as many."""
    logical_count("load.json")
    assert "hold no expert" not in str(place("load.json", "--gpus", 8, "--solver", "greedy")["notes"])
    notes = place("load.json", "--gpus", 16, "--solver", "greedy")["notes"]
    assert "8 of 16 GPUs hold no expert: there are 8 slots" in notes


@pytest.mark.parametrize("form", ["sglang", "trtllm", "vllm-ascend", "vllm"])
def test_exports_hold_the_placement(form: str) -> None:
    logical_count("load.json")
    asked = ("load.json", "--gpus", 4, "--slots", 12, "--solver", "greedy")
    model = {
        "name": "four layers",
        "hidden": 64,
        "layers": 4,
        "vocab": 1000,
        "attention": {"heads": 4, "kv_heads": 2, "head_dim": 16},
        "experts": {"count": 8, "top_k": 2, "width": 32},
        "first_dense": 1,
        "dense_width": 128,
    }
    Path("m.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
    place(*asked, "-o", "native.json")
    out = "out.yaml" if form == "trtllm" else "out.json"
    done = moesim("place", *asked, "--model", "m.yaml", "--format", form, "-o", out)
    assert done.code == 0
    assert ("#49572" in done.err) == (form == "vllm")
    rows = read_placement("native.json").slot_expert_LS.tolist()
    content = yaml.safe_load(Path(out).read_text(encoding="utf-8"))  # JSON is YAML
    if form == "sglang":
        found = content["physical_to_logical_map"][1:]
    elif form == "trtllm":
        found = list(content["initial_global_assignments"].values())
    elif form == "vllm-ascend":
        found = [
            [expert for device in layer["device_list"] for expert in device["device_expert"]]
            for layer in content["layer_list"]
        ]
    else:
        found = content
    assert found == rows


def test_simulated_candidates_are_runs_of_the_scenario_on_what_was_kept_back() -> None:
    arguments = ("t.parquet", "--gpus", 4, "--simulate", "s.yaml", "--hold-out", "0.5")
    value = place(*arguments, "-s", "workload.steps=3", "-o", "p.json")
    simulated = value["simulated"]
    assert (simulated["replayed"], simulated["steps"]) == ("requests 3 to 5", 3)
    assert value["nodes"] == 2  # the scenario's
    # With half of the requests fitted, a run of the scenario replays the same ones.
    changes = {"workload.steps": 3, "trace": {"file": "t.parquet"}, "placement": "linear"}
    overrides = [Override(tuple(key.split(".")), each) for key, each in changes.items()]
    done = run(deploy(load_scenario("s.yaml", overrides)))
    steps_s = done.timeline.end_s_N.max() / 3
    assert simulated["linear"]["step_time_s"] == pytest.approx(steps_s, rel=rounding(10**6))
    assert simulated["linear"]["cross_node_bytes"] == pytest.approx(done.cross_node_bytes / 3)
    assert simulated.keys() == {"scenario", "replayed", "steps", "linear", "eplb", "result"}


def test_a_migration_is_planned_timed_and_paid_back() -> None:
    place("t.parquet", "--gpus", 4, "--solver", "linear", "-o", "before.json")
    arguments = ("t.parquet", "--gpus", 4, "--slots", 12, "--simulate", "s.yaml", "--previous", "before.json")
    value = place(*arguments, "-o", "after.json")
    migration = value["migration"]
    before, after = read_placement("before.json"), read_placement("after.json")
    plan = plan_migration(before, after, [0, 0, 1, 1])
    assert migration["transfers"] == plan.transfers()
    assert migration["moves"] == value["moved_experts"] == plan.moves > 0
    assert migration["bytes"] == plan.moves * 3 * 64 * 32 * 2  # three matrices in bf16
    narrow = "{name: narrow, width: 8, experts: [1, 2, 3, 4]}"
    of_kinds = place(*arguments, "-s", f"model.experts.kinds=[{narrow}]")["migration"]
    moved = [8 if each["expert"] in (1, 2, 3, 4) else 32 for each in of_kinds["transfers"]]
    assert of_kinds["bytes"] == sum(moved) * 3 * 64 * 2 < len(moved) * 3 * 64 * 32 * 2
    # Never faster than the fullest port: 10 GB/s inside a node, 1 GB/s to the other.
    bytes_GG = plan.bytes_LGG(np.full((2, 8), 3 * 64 * 32 * 2.0)).sum(axis=0)
    across = bytes_GG[:2, 2:].sum(axis=1).max()
    assert migration["seconds"] >= across / 1e9
    saved_s = value["simulated"]["previous"]["step_time_s"] - value["simulated"]["result"]["step_time_s"]
    if saved_s > 0:
        assert migration["payback_steps"] == pytest.approx(migration["seconds"] / saved_s)
    else:
        assert migration["payback_steps"] is None
    # A step that has begun counts whole, as in a what-if.
    soon = value | {"migration": migration | {"payback_steps": 0.2}}
    text = StringIO()
    Console(file=text, width=200).print(*place_tables(soon))
    assert "; paid back after 1 step\n" in re.sub(" +\n", "\n", text.getvalue())


def test_moves_stay_within_their_limit() -> None:
    place("t.parquet", "--gpus", 4, "--solver", "linear", "-o", "before.json")
    arguments = ("t.parquet", "--gpus", 4, "--solver", "swap", "--previous", "before.json")
    value = place(*arguments, "--max-moves", 2, "-o", "after.json")
    assert value["moved_experts"] <= 2
    assert value["cost"] <= value["baselines"]["previous"]["cost"]
    before, after = read_placement("before.json"), read_placement("after.json")
    problem = Problem.of(np.ones((2, 8)), 4, layers=(1, 2), previous=before)
    assert moves_L(problem, after).sum() == value["moved_experts"]
    none = place(*arguments, "--max-moves", 0)
    assert none["moved_experts"] == 0
    assert none["migration"]["seconds"] is None
    assert none["migration"]["transfers"] == []


@pytest.mark.parametrize("objective", ["time", "copies", "mixed"])
def test_other_objectives_are_made_no_worse_than_linear(objective: str) -> None:
    value = place("t.parquet", "--gpus", 4, "--objective", objective, "--simulate", "s.yaml")
    assert value["objective"] == objective
    assert value["lower_bound"] <= value["cost"] <= value["baselines"]["linear"]["cost"]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    place("t.parquet", "--gpus", 4, "--solver", "linear", "-o", "before.json")
    done = moesim(
        *("place", "t.parquet", "--gpus", 4, "--slots", 12, "--solver", "greedy", "--metrics", "all"),
        *("--simulate", "s.yaml", "--previous", "before.json"),
    )
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert "…" not in done.out
    for text in ("greedy", "kept back", "TensorRT-LLM (imbalance)", "Migration: ", "straggler ratio"):
        assert text in done.out
    assert "ADRS" not in moesim("place", "t.parquet", "--gpus", 4, "--solver", "greedy").out


def test_solvers_are_listed() -> None:
    rows = json.loads(moesim("presets", "solvers", "--json").out)["solvers"]
    assert {row["name"] for row in rows} == set(SOLVERS)


@pytest.mark.shared
def test_gpt_oss_on_eight_gpus(shared: Path) -> None:
    data = shared / "data" / "gptoss20b" / "decode_routing.npz"
    value = place(data, "--model", "gpt-oss-20b", "--gpus", 8, "--solver", "greedy", "--hold-out", "0.5")
    linear = value["baselines"]["linear"]
    assert value["fitted_on"] == "requests 0 to 105"
    assert value["balancedness"] > 0.95 > 0.7 > linear["balancedness"]
    assert value["held_out"]["balancedness"] > value["held_out"]["baselines"]["linear"]["balancedness"] + 0.15


def test_an_interruption_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    asked = ("place", "t.parquet", "--gpus", 4, "--solver", "moetuner")
    monkeypatch.setattr("placement.solvers.moetuner.cheapest_mapping", interrupted)
    done = moesim(*asked)
    assert done.code == 0
    assert "s, interrupted)" in " ".join(done.out.split())
    monkeypatch.setattr("placement.solvers.moetuner._largest_first", interrupted)
    assert moesim(*asked, "-o", "p.json") == (130, "", "moesim: interrupted\n")
    assert not Path("p.json").exists()


def test_the_table_shows_what_was_made_small() -> None:
    asked = ("t.parquet", "--gpus", 4, "--nodes", 2, "--solver", "linear")
    value = place(*asked, "--objective", "copies")
    table = moesim("place", *asked, "--objective", "copies").out
    cells = next(line for line in table.splitlines() if line.startswith("linear ")).split()
    held_out = value["held_out"]["cost"]
    assert [float(cells[n].replace(",", "")) for n in (2, 6)] == pytest.approx(
        [value["cost"], held_out], rel=5e-3
    )
    assert "cost: copies of tokens sent to other nodes, added up" in table
    assert re.search(r"bound: no placement costs less than [0-9.,]+ copies", table)
    assert "fullest GPUs" not in table
    assert "fullest GPUs" in moesim("place", *asked).out
