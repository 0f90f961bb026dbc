"""What the command line refuses: exit code 2, one line that names place, rule and value, nothing written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.moesim.command import refused
from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.traces.random_traces import random_trace
from traces.trace_writer import write_trace

pytestmark = pytest.mark.usefixtures("here")


def scenario_file(**changes: Any) -> Callable[[], list[str]]:
    def make() -> list[str]:
        write_scenario(Path(), tiny_scenario(**changes), "bad.yaml")
        return ["run", "bad.yaml"]

    return make


def text_file(text: str) -> Callable[[], list[str]]:
    def make() -> list[str]:
        Path("bad.yaml").write_text(text, encoding="utf-8")
        return ["run", "bad.yaml"]

    return make


def set_(*options: str) -> Callable[[], list[str]]:
    return lambda: ["run", "s.yaml", *(part for option in options for part in ("-s", option))]


def vary(*options: str) -> Callable[[], list[str]]:
    return lambda: ["whatif", "s.yaml", *(part for option in options for part in ("--vary", option))]


def trace_with(column: str, value: float, at: int = 7) -> Callable[[], list[str]]:
    """A run on the trace with one entry of a column replaced, behind the writer's back."""

    def make() -> list[str]:
        table = pq.read_table("t.parquet")
        values = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
        values[at] = value
        field = table.schema.field(column)
        entries = pa.array(values, field.type.value_type)
        changed = pa.FixedSizeListArray.from_arrays(entries, type=field.type)
        pq.write_table(table.set_column(table.schema.get_field_index(column), field, changed), "bad.parquet")
        return ["run", "s.yaml", "-s", "trace={file: bad.parquet}"]

    return make


def repeated_expert() -> list[str]:
    trace = random_trace(layers=(1, 2), lengths=(12,) * 6)
    return trace_with("experts_2", float(trace.ids_TLK[3, 1, 0]))()


def truncated() -> list[str]:
    Path("bad.parquet").write_bytes(Path("t.parquet").read_bytes()[:-100])
    return ["run", "s.yaml", "-s", "trace={file: bad.parquet}"]


def foreign_parquet() -> list[str]:
    pq.write_table(pa.table({"a": [1, 2]}), "bad.parquet")
    return ["run", "s.yaml", "-s", "trace={file: bad.parquet}"]


def other_shape() -> list[str]:
    write_trace(random_trace(layers=(1, 2, 3), lengths=(12,) * 6), "bad.parquet")
    return ["run", "s.yaml", "-s", "trace={file: bad.parquet}"]


def no_weights() -> list[str]:
    write_trace(random_trace(layers=(1, 2), lengths=(12,) * 6, weights=None), "bad.parquet")
    drop = "routing={policy: drop, capacity_factor: 1}"
    return ["run", "s.yaml", "-s", "trace={file: bad.parquet}", "-s", drop]


def placement_of(gpus: int) -> Callable[[], list[str]]:
    def make() -> list[str]:
        content = {
            "format": "moesim.placement/1",
            "origin": "a test",
            "experts": 8,
            "gpus": gpus,
            "layers": [1, 2],
            "slot_gpu": [slot * gpus // 8 for slot in range(8)],
            "slot_expert": [list(range(8))] * 2,
        }
        Path("bad.json").write_text(json.dumps(content))
        return ["run", "s.yaml", "-s", "placement={file: bad.json}"]

    return make


def model_of_nine_of_eight() -> dict[str, Any]:
    fields: dict[str, Any] = tiny_scenario()["model"]
    return fields | {"experts": fields["experts"] | {"top_k": 9}}


# What is wrong, how to ask for it, and what the line must say: place, rule, value.
BAD: dict[str, tuple[Callable[[], list[str]], list[str]]] = {
    "broken YAML": (text_file("name: x\nmodel: {a: [1\nb: 2\n"), ["bad.yaml:3: ", "is not valid YAML"]),
    "empty file": (text_file(""), ["bad.yaml:1: must be a mapping"]),
    "a list": (text_file("- 1\n"), ["bad.yaml:1: must be a mapping"]),
    "duplicate key": (text_file("name: x\nname: y\n"), ["bad.yaml:2: name: duplicate key"]),
    "no such file": (lambda: ["run", "nope.yaml"], ["nope.yaml: there is no such file"]),
    "no such preset": (lambda: ["run", "nope"], ["SCENARIO: ", "demo", "(got 'nope')"]),
    "a folder": (lambda: ["run", "."], [".: is a folder"]),
    "unknown key": (scenario_file(modle=1), ["bad.yaml:", "modle: unknown key; did you mean 'model'?"]),
    "unknown inner key": (
        scenario_file(workload={"tokens_per_gpu": 4, "context": 4, "stps": 1}),
        ["bad.yaml:", "workload.stps: unknown key; did you mean 'steps'?"],
    ),
    "missing field": (scenario_file(workload=None), ["bad.yaml:", "workload: is missing"]),
    "EP does not divide": (
        scenario_file(parallelism={"ep": 3}),
        ["bad.yaml:", "parallelism.ep: must divide the cluster's 4 GPUs (got 3)"],
    ),
    "experts do not divide": (
        scenario_file(model=tiny_scenario()["model"] | {"experts": {"count": 6, "top_k": 2, "width": 32}}),
        ["bad.yaml:", "parallelism.ep: 6 experts do not divide over 4 GPUs", "slots: 8"],
    ),
    "more experts than slots": (
        scenario_file(placement={"solver": "greedy", "slots": 4}),
        ["bad.yaml:", "placement.slots: more experts than slots: 8 experts", "(got 4)"],
    ),
    "slots that cannot be filled": (
        scenario_file(placement={"solver": "greedy", "slots": 36}),
        ["bad.yaml:", "placement.slots: must be at most 32", "(got 36)"],
    ),
    "experts per token": (
        scenario_file(model=model_of_nine_of_eight()),
        ["bad.yaml:", "model.experts.top_k: must be at most count (8) (got 9)"],
    ),
    "too large for the memory": (
        set_("cluster.gpu.memory=100 KB"),
        ["s.yaml: cluster.gpu.memory: tiny on 4 GPUs needs ", "more than tiny offers"],
    ),
    "no figure for a dtype": (
        set_("cluster.gpu.flops={fp8: 1 TFLOPS}"),
        ["-s cluster.gpu.flops: has no figure for bf16", "(got 'tiny')"],
    ),
    "id out of range": (trace_with("experts_2", 8), ["bad.parquet: experts_2", "token 3", "(got 8)"]),
    "NaN weight": (trace_with("weights_1", np.nan), ["bad.parquet: weights_1", "token 3", "(got nan)"]),
    "one expert twice": (repeated_expert, ["bad.parquet: experts_2", "token 3"]),
    "truncated Parquet": (truncated, ["bad.parquet: is damaged or not a Parquet file"]),
    "foreign Parquet": (foreign_parquet, ["bad.parquet: "]),
    "another shape": (
        other_shape,
        ["bad.parquet: trace: ", "another shape", "2 MoE layers", "(got '3 MoE layers')"],
    ),
    "no trace file": (set_("trace={file: nope.parquet}"), ["nope.parquet: there is no such file"]),
    "trace is a folder": (set_("trace={file: .}"), ["is a folder"]),
    "trace is a device": (
        set_("trace={file: /dev/zero}"),
        ["/dev/zero: is not a regular file (character device)"],
    ),
    "a name with NUL": (set_('trace={file: "a\\0b"}'), ["-s trace: trace.file: is not a file name"]),
    "weights are missing": (no_weights, ["routing.policy: policy drop needs gate weights", "(got 'drop')"]),
    "two traces": (
        set_("trace.file=t.parquet"),
        ["-s trace.file: trace: must name one of file, sample and synth"],
    ),
    "no blank after the colon": (
        set_("trace={sample:true}"),
        ["-s trace: trace.sample:true: write 'sample: true', with a blank after the colon"],
    ),
    "no sample": (set_("trace={sample: false}"), ["must name one of", "'sample: false' names none"]),
    "a trace as generator": (set_("trace={synth: t.parquet}"), ["t.parquet: is Parquet, not a generator"]),
    "too few requests": (
        set_("trace.synth.requests=1"),
        ["s.yaml: placement.fit_fraction: ", "'1 requests'"],
    ),
    "too large a trace": (set_("trace.synth.requests=2000000000"), ["s.yaml: ", "GiB of memory"]),
    "too many steps": (
        set_(
            "workload.steps=1048576",
            "workload.timeline_every=1",
            "cluster=h100-64x8",
            "parallelism.ep=512",
            "placement={solver: linear, slots: 512}",
        ),
        [
            "s.yaml: simulating 1048576 steps on 512 GPUs, 1048576 of them kept whole, needs ",
            "lower workload.steps",
        ],
    ),
    "unknown solver": (
        set_("placement=magic"),
        ["-s placement: placement.solver: no such solver", "greedy", "'magic'"],
    ),
    "unknown policy": (
        set_("routing={policy: x}"),
        ["-s routing: routing.policy: no such policy", "drop", "'x'"],
    ),
    "unknown model": (
        set_("model=deepsek-v3"),
        ["-s model: no such model", "did you mean 'deepseek-v3'?"],
    ),
    "unknown cluster": (set_("cluster=x1-4x8"), ["-s cluster: ", "h800", "(got 'x1')"]),
    "unknown profile": (set_("profile=nope"), ["-s profile: must be ", "generic", "(got 'nope')"]),
    "profile of another GPU": (
        set_("profile.gpu=h100"),
        ["-s profile.gpu: was measured on h100, the cluster has tiny (got 'h100')"],
    ),
    "no placement file": (set_("placement={file: nope.json}"), ["nope.json: "]),
    "placement of other GPUs": (placement_of(2), ["bad.json: ", "(got 2)"]),
    "policy lacks a parameter": (
        set_("routing={policy: drop}"),
        ["-s routing: routing.capacity_factor: policy drop needs it"],
    ),
    "parameter of another policy": (
        set_("routing.capacity_factor=1.5"),
        ["-s routing.capacity_factor: policy none does not know it", "drop"],
    ),
    "not a mapping": (set_("routing=null"), ["-s routing: must be a mapping", "(got None)"]),
    "inside a number": (
        set_("workload.steps.x=1"),
        ["-s workload.steps.x: workload.steps: is not a mapping", "(got 2)"],
    ),
    "-s unknown key": (set_("nope.x=1"), ["-s nope.x: nope: unknown key"]),
    "-s without a value": (set_("workload.steps"), ["-s: must read KEY=VALUE", "(got 'workload.steps')"]),
    "-s without a key": (set_("=1"), ["-s: must read KEY=VALUE"]),
    "-s broken YAML": (set_("workload.steps=[1"), ["-s workload.steps:", "is not valid YAML"]),
    "-s too small": (
        set_("workload.steps=0"),
        ["-s workload.steps: must be at least 1 (got 0)"],
    ),
    "-s wrong unit": (
        set_("cluster.nic.bandwidth=1 s"),
        ["-s cluster.nic.bandwidth: ", "'s' is not a unit", "(got '1 s')"],
    ),
    "a line break in a key": (set_("a\nb=1"), ["unknown key"]),
    "terminal codes in a name": (lambda: ["run", "\x1b[31mx.yaml"], ["\\x1b[31mx.yaml: "]),
    "--vary without a list": (vary("seed=3"), ["--vary seed: must be a list of values", "(got '3')"]),
    "--vary nothing": (vary("seed=[]"), ["--vary seed: must be a list of values"]),
    "--vary without a value": (vary("seed"), ["--vary: must read KEY="]),
    "--vary twice": (vary("seed=[1]", "seed=[2]"), ["--vary seed: is varied more than once"]),
    "--vary twice in one": (vary("seed,seed=[[1, 2]]"), ["--vary seed: is varied more than once"]),
    "--vary an empty key": (vary("seed,=[[1, 2]]"), ["--vary: must read KEY=", "KEY,KEY=[[V1, W1]"]),
    "--vary too few values": (
        vary("seed,workload.steps=[[1, 2], [3]]"),
        ["--vary seed,workload.steps: [1]: must be a list of 2 values, one for each key (got [3])"],
    ),
    "--vary too many values": (
        vary("seed,workload.steps=[[1, 2, 3]]"),
        ["--vary seed,workload.steps: [0]: must be a list of 2 values, one for each key"],
    ),
    "--vary one value for two keys": (
        vary("seed,workload.steps=[1, 2]"),
        ["--vary seed,workload.steps: [0]: must be a list of 2 values, one for each key (got 1)"],
    ),
    "--vary together with one of them": (
        vary("seed,workload.steps=[[1, 2]]", "seed=[3]"),
        ["--vary seed: is varied more than once"],
    ),
    "--vary together without a list": (
        vary("seed,workload.steps=3"),
        ["--vary seed,workload.steps: must be a list of values, such as [[h100-1x8, 8]"],
    ),
    "--vary too much": (
        vary(*(f"{key}=[{', '.join('1' * 101)}]" for key in ("seed", "workload.steps"))),
        ["--vary: more than 10000 combinations (got 10201)"],
    ),
    "--vary a bad value": (vary("seed=[-2, -1]"), ["--vary seed: must be at least 0 (got -2)"]),
    "--vary a foreign parameter": (
        vary("routing.capacity_factor=[1]"),
        ["--vary routing.capacity_factor: ", "policy none"],
    ),
    "unknown kind of preset": (
        lambda: ["presets", "modles"],
        ["presets: no such kind; did you mean 'models'?"],
    ),
    "info of nothing": (lambda: ["trace", "info", "nope"], ["nope: there is no such file"]),
    "info of a folder": (lambda: ["trace", "info", "."], [".: is a folder"]),
    "info of YAML": (lambda: ["trace", "info", "s.yaml"], ["s.yaml: is no trace, no load table", "npz"]),
    "info, EP does not divide": (
        lambda: ["trace", "info", "t.parquet", "--ep", "3"],
        ["must divide 8 experts (got 3)"],
    ),
    "convert nothing": (
        lambda: ["trace", "convert", "nope", "-o", "x.parquet"],
        ["nope: there is no such file"],
    ),
    "convert YAML": (
        lambda: ["trace", "convert", "s.yaml", "-o", "x.parquet"],
        ["s.yaml: ", "--from", "npz"],
    ),
    "convert from an unknown layout": (
        lambda: ["trace", "convert", "s.yaml", "--from", "zip", "-o", "x.parquet"],
        ["unknown format", "npz", "(got 'zip')"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(name: str) -> None:
    make, parts = BAD[name]
    line = refused(*make())
    assert [part for part in parts if part not in line] == [], line


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("moesim.studies.whatif._SCHEDULER_TIMEOUT_S", 0.2)
    line = refused("whatif", "s.yaml", "--vary", "seed=[1]", "--scheduler", "tcp://127.0.0.1:1")
    assert line == "--scheduler: no dask scheduler answers there (got 'tcp://127.0.0.1:1')"


def test_a_scheduler_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    line = refused("whatif", "s.yaml", "--vary", "seed=[1]", "--scheduler", "tcp://127.0.0.1:1")
    assert line.startswith("--scheduler: needs the package distributed: pip install 'moesim[cluster]'")


@pytest.mark.parametrize("command", [["run", "s.yaml"], ["whatif", "s.yaml", "--vary", "seed=[1]"], ["demo"]])
@pytest.mark.parametrize("out", ["s.yaml", "s.yaml/out"])
def test_an_output_that_cannot_be_written_is_refused_first(
    command: list[str], out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.simulation.run.run_alone", lambda *_: pytest.fail("simulated in vain"))
    assert refused(*command, "-o", out) == "s.yaml: is not a folder"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(here: Path) -> None:
    (here / "closed").mkdir(mode=0o500)
    assert refused("run", "s.yaml", "-o", "closed/out") == "closed: cannot be written: Permission denied"


def test_a_trace_is_not_written_onto_a_folder(here: Path) -> None:
    np.savez("foreign.npz", topk_ids=random_trace(lengths=(5,)).ids_TLK, request_offsets=[0, 5])
    convert = ["trace", "convert", "foreign.npz", "--experts", "8", "-o"]
    assert refused(*convert, ".").startswith(".: is a folder")
    assert refused(*convert, "nope/x.parquet") == "nope: there is no such folder"
