"""What ``moesim place`` refuses: exit code 2, one line that names place, rule and value, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.files.native import write_placement
from placement.problem.placement import Placement
from placement.solvers.solvers import solve
from tests.moesim.command import files, moesim, refused
from tests.moesim.tiny import tiny_scenario, write_scenario

pytestmark = pytest.mark.usefixtures("here")

Arguments = Callable[[], list[object]]


def asked(*arguments: object, gpus: int = 4) -> Arguments:
    return lambda: ["t.parquet", "--gpus", gpus, *arguments]


def loads(content: str, *arguments: object) -> Arguments:
    def make() -> list[object]:
        Path("load.json").write_text(content, encoding="utf-8")
        return ["load.json", "--gpus", 2, *arguments]

    return make


def count(*layers: Any) -> str:
    return json.dumps({"logical_count": layers})


def table(load: list[Any]) -> str:
    head = {
        "format": "moesim.load_table/1",
        "model": "",
        "experts": 2,
        "layers": [0],
        "origin": "",
        "licence": "",
    }
    return json.dumps({**head, "load": load})


def previous(*arguments: object, **changes: Any) -> Arguments:
    """From a placement of other experts, GPUs or layers."""

    def make() -> list[object]:
        fields: dict[str, Any] = {"experts": 8, "gpus": 4, "layers": (1, 2)} | changes
        write_placement(solve("linear", None, **fields), "before.json")
        return ["t.parquet", "--gpus", 4, "--previous", "before.json", *arguments]

    return make


def all_on_one() -> list[object]:
    """GPU 0 had 8 slots; with 2 on each of 4 GPUs, 6 experts of each layer have to leave it."""
    placement = Placement(np.tile(np.arange(8), (2, 1)), np.zeros(8, dtype=np.int64), 8, 4, (1, 2))
    write_placement(placement, "before.json")
    return ["t.parquet", "--gpus", 4, "--previous", "before.json", "--max-moves", 5]


def scenario(*arguments: object, **changes: Any) -> Arguments:
    def make() -> list[object]:
        write_scenario(Path(), tiny_scenario(**changes), "other.yaml")
        return ["t.parquet", "--gpus", 4, "--simulate", "other.yaml", *arguments]

    return make


EIGHT = [1, 2, 3, 4, 5, 6, 7, 8]
REFUSALS: dict[str, tuple[Arguments, str]] = {
    "no such file": (lambda: ["none.parquet", "--gpus", 4], "none.parquet: there is no such file"),
    "negative load": (
        loads(count([1, -2])),
        "load.json: load, window 0, layer 0, expert 1: must not be negative (got -2)",
    ),
    "NaN": (loads('{"logical_count": [[1, NaN]]}'), "load.json: is not a JSON number (got 'NaN')"),
    "texts": (
        loads(count([1, "2.5"])),
        "load.json: logical_count, window 0, row 0, expert 1: must be a number below 2^63 (got '2.5')",
    ),
    "no load at all": (
        loads(count([0, 0], [0, 0])),
        "load.json: has no load in any window",
    ),
    "a layer without load": (
        loads(table([[[0, 0]]])),
        "load.json: load, layer 0: has no load in any window",
    ),
    "nothing in what is kept back": (
        loads(table([[[1, 2]], [[0, 0]]])),
        "load.json: window 1, kept back: load, layer 0: the loads of a layer must not all be zero",
    ),
    "nothing in what is seen": (
        loads(table([[[0, 0]], [[1, 2]]])),
        "load, layer 0: the loads of a layer must not all be zero",
    ),
    "too few slots": (
        asked("--slots", 6),
        "slots: more experts than slots: 8 experts, each on a GPU, need as many slots (got 6)",
    ),
    "absurd slots": (asked("--slots", 70_000), "slots: must be a whole number from 1 to 65536 (got 70000)"),
    "absurd GPUs": (asked(gpus=5_000), "gpus: must be a whole number from 1 to 4096 (got 5000)"),
    "more nodes than GPUs": (asked("--nodes", 5), "--nodes: must be at most the 4 GPUs (got 5)"),
    "no such solver": (
        asked("--solver", "magic"),
        "solver: no such solver; known: linear, round_robin, greedy, ",
    ),
    "copies in one node": (
        asked("--objective", "copies"),
        "--objective: there are no copies to other nodes in one; name --nodes (got 'copies')",
    ),
    "copies without tokens": (
        loads(count(EIGHT), "--nodes", 2, "--objective", "mixed"),
        "--objective: needs tokens: counts do not tell which experts one chose together; give a trace "
        "(got 'mixed')",
    ),
    "time without a scenario": (
        asked("--objective", "time"),
        "--objective: needs seconds per token and per activated expert: name a --simulate SCENARIO "
        "(got 'time')",
    ),
    "keep back all": (
        asked("--hold-out", "1"),
        "t.parquet: --hold-out: must leave something on either side of 6 requests (got 1.0)",
    ),
    "keep back too little": (
        asked("--hold-out", "0.01"),
        "t.parquet: --hold-out: must leave something on either side of 6 requests (got 0.01)",
    ),
    "keep back of one window": (
        loads(count(EIGHT), "--hold-out", "0.5"),
        "load.json: --hold-out: must leave something on either side of 1 windows (got 0.5)",
    ),
    "too many windows": (
        asked("--windows", 6),
        "t.parquet: --windows: there are only 4 requests to fit on (got 6)",
    ),
    "moves from nowhere": (
        asked("--max-moves", 3),
        "--max-moves: needs --previous FILE to move from (got 3)",
    ),
    "contradictory rules": (
        all_on_one,
        "max_moves: the other rules alone make 12 copies move (got 5)",
    ),
    "previous of other experts": (
        previous(experts=16),
        "before.json: experts: the placement must be for 8 (got 16)",
    ),
    "previous of other GPUs": (
        previous(gpus=2),
        "before.json: gpus: the placement must be for 4 (got 2)",
    ),
    "previous of other layers": (
        previous(layers=(0, 1)),
        "before.json: layers: the placement must be for 2 layers from 1 to 2 (got '2 layers from 0 to 1')",
    ),
    "previous of another format": (
        lambda: ["t.parquet", "--gpus", 4, "--previous", "t.parquet"],
        "t.parquet: is not UTF-8 text: byte ",
    ),
    "another model": (
        asked("--model", "deepseek-v3"),
        "t.parquet: --model: has 256 experts in 58 layers from 3 to 60; the loads have 8 experts in 2 layers "
        "from 1 to 2 (got 'deepseek-v3')",
    ),
    "scenario of another model": (
        scenario(model="gpt-oss-20b", cluster="h100-1x8"),
        "other.yaml: model: has 32 experts in 24 layers from 0 to 23; the loads have 8 experts in 2 layers "
        "from 1 to 2 (got 'gpt-oss-20b')",
    ),
    "scenario of other layers": (
        scenario("-s", "model.first_dense=0"),
        "other.yaml: model: has 8 experts in 3 layers from 0 to 2; the loads have 8 experts in 2 layers "
        "from 1 to 2 (got 'tiny')",
    ),
    "scenario of other GPUs": (
        scenario(parallelism={"ep": 2}),
        "other.yaml: parallelism.ep: must be the 4 GPUs of --gpus (got 2)",
    ),
    "scenario without memory": (
        scenario("-s", "cluster.gpu.memory=100 KB"),
        "cluster.gpu.memory: tiny on 4 GPUs needs ",
    ),
    "fields of no scenario": (
        asked("-s", "seed=1"),
        "-s: sets a field of --simulate SCENARIO, which is not named (got 'seed=1')",
    ),
    "format without a file": (
        asked("--format", "trtllm"),
        "--format: needs -o FILE to write to (got 'trtllm')",
    ),
    "slots that do not divide": (
        asked("--slots", 10, "--format", "trtllm", "-o", "out.yaml"),
        "slots: TensorRT-LLM holds equally many slots on each of 4 GPUs, not 2 to 3; 12 slots divide "
        "(got 10)",
    ),
    "SGLang without a model": (
        asked("--format", "sglang", "-o", "out.json"),
        "model: SGLang counts all layers of the model, dense ones too, and nothing here tells their number: "
        "name the model",
    ),
    "a folder in the way": (asked("-o", "."), ".: is a folder, a file was expected"),
    "no folder": (asked("-o", "none/p.json"), "none: there is no such folder"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    make, message = REFUSALS[case]
    line = refused("place", *make())
    assert line.startswith(message) or f": {message}" in line, line


def test_a_solver_that_lacks_what_it_needs() -> None:
    Path("load.json").write_text(count(EIGHT, EIGHT), encoding="utf-8")
    line = refused("place", "load.json", "--gpus", 2, "--solver", "locality")
    assert "sample" in line or "tokens" in line or "no such solver" in line


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--objective", "speed"),
        ("--format", "tensorrt"),
        ("--gpus", 0),
        ("--hold-out", 2),
        ("--time-limit", -1),
    ],
)
def test_values_that_an_option_cannot_have(here: Path, option: str, value: object) -> None:
    before = files(here)
    done = moesim("place", "t.parquet", "--gpus", 4, option, value)
    assert (done.code, done.out) == (2, "")
    assert option in done.err
    assert files(here) == before


@pytest.mark.parametrize("out", ["t.parquet", "./t.parquet", "before.json", "s.yaml"])
def test_what_is_read_is_not_written(out: str) -> None:
    write_placement(solve("linear", None, experts=8, gpus=4, layers=(1, 2)), "before.json")
    write_scenario(Path(), tiny_scenario(), "s.yaml")
    before = files(Path())
    asked = ["t.parquet", "--gpus", 4, "--previous", "before.json", "--simulate", "s.yaml", "-o", out]
    assert "is what this command reads" in refused("place", *asked)
    assert "is what this command reads" in refused("trace", "convert", "t.parquet", "-o", "t.parquet")
    assert files(Path()) == before
