"""The scenarios in examples/, and the preset that validation is made for, can run for real as they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moesim.deployment.deployment import deploy
from moesim.live.scenario import executable, own_cluster
from moesim.spec.override import Override

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("validate-*.yaml"))


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"validate-cpu", "validate-one-gpu", "validate-8-gpu"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands_on_the_ranks_it_names(path: Path) -> None:
    named = re.search(r"moesim validate examples/(\S+) --ranks (\d+)", path.read_text("utf-8"))
    assert named is not None
    assert named[1] == path.name
    ranks = int(named[2])
    chosen = executable(str(path), [], ranks, own_cluster)
    assert chosen.notes == ()
    assert chosen.scenario.name == path.stem
    assert chosen.scenario.parallelism.ep == ranks


def test_the_preset_for_cpu_ranks_has_the_shape_of_the_recorded_routing() -> None:
    chosen = executable("cpu-ep2", [], 2, own_cluster)
    model = chosen.scenario.model
    assert chosen.notes == ()
    assert (len(model.moe_layers), model.experts.count, model.experts.top_k) == (24, 32, 4)
    assert (model.hidden, model.experts.width, model.activation_dtype) == (512, 1024, "fp32")


@pytest.mark.shared
def test_the_preset_replays_a_recording(shared: Path) -> None:
    file = shared / "data" / "gptoss20b" / "decode_routing.npz"
    recording = Override(("trace",), {"file": str(file)})
    deployment = deploy(executable("cpu-ep2", [recording], 2, own_cluster).scenario)
    assert deployment.trace.tokens == 70_558
