"""Layers with attention of other kinds: parameters, time and memory by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import SpecError
from moesim.hardware.kernels import Kernels
from moesim.spec.base import validate
from moesim.spec.model import Model
from moesim.spec.presets import preset_source
from moesim.spec.scenario import load_scenario
from moesim.units import format_bytes
from tests.moesim.command import moesim, refused
from tests.tolerance import rounding

LINEAR: dict[str, Any] = {"kind": "linear", "heads": 4, "projections": 1000, "state": 64}
GQA: dict[str, Any] = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 8}
INDEX: dict[str, Any] = {"index_heads": 2, "index_dim": 4, "index_top_k": 16}
MODEL: dict[str, Any] = {
    "name": "mixed",
    "hidden": 32,
    "layers": 4,
    "vocab": 100,
    "attention": LINEAR,
    "attention_kinds": [{"name": "full", "layers": [3], **GQA}],
    "experts": {"count": 4, "top_k": 2, "width": 16},
    "moe_at": [1, 2],
    "dense_width": 24,
}


def model(**changes: Any) -> Model:
    return validate(Model, MODEL | changes)


def test_parameters_are_those_of_each_layer() -> None:
    mixed = model()
    full = 32 * 8 * (4 + 2) * 2  # Q, K, V and output
    assert [mixed.attention_in(layer).kind for layer in range(4)] == ["linear"] * 3 + ["gqa"]
    assert mixed.all_attention_params == 3 * 1000 + full
    assert (mixed.moe_layers, mixed.dense_layers) == ((1, 2), (0, 3))
    assert mixed.weight_bytes(1).attention == 2 * mixed.all_attention_params
    assert validate(Model, json.loads(mixed.model_dump_json())) == mixed


def test_a_plain_model_is_written_as_ever() -> None:
    plain = validate(Model, preset_source("models", "mixtral-8x7b").value).model_dump(mode="json")
    assert not {"moe_at", "attention_kinds"} & plain.keys()
    assert not {"state", "projections", "compress", "index_heads", "shared_kv"} & plain["attention"].keys()


def test_what_a_token_attends_to_and_a_sequence_keeps() -> None:
    keys = np.array([4.0, 100.0])

    def of(**changes: Any) -> list[list[float]]:
        attention = model(attention=GQA | changes, attention_kinds=[]).attention_in(0)
        return [each(keys).tolist() for each in (attention.attended, attention.cached, attention.scanned)]

    assert of() == [[4, 100], [4, 100], [0, 0]]
    assert of(window=10) == [[4, 10], [4, 10], [0, 0]]
    assert of(**INDEX) == [[4, 16], [4, 100], [4, 100]]
    assert of(compress=4, window=10) == [[5, 35], [5, 35], [0, 0]]
    assert of(compress=4, window=10, **INDEX) == [[5, 26], [5, 35], [1, 25]]
    linear = model().attention_in(0)
    assert [linear.attended(keys).tolist(), linear.cached(keys).tolist()] == [[0, 0], [0, 0]]


def kernels(**changes: Any) -> Kernels:
    demo = load_scenario("demo")
    return Kernels(model(**changes), demo.cluster.gpu, demo.profile)


def test_a_state_is_updated_for_each_token_and_streamed_for_each_sequence() -> None:
    own = kernels()
    attention, roof, gpu = own.model.attention, own.profile.attention, own.gpu
    few = own.recurrence(np.array([1.0]), np.array([1.0]), attention)
    assert few == pytest.approx(2 * 4 * 64 / (gpu.memory_bandwidth * roof.memory), rel=rounding(few[0]))
    many = own.recurrence(np.array([1e6]), np.array([1.0]), attention)
    flops = gpu.peak_flops("bf16") * roof.compute
    assert many == pytest.approx(1e6 * 6 * 64 / flops, rel=rounding(many[0]))


def test_an_indexer_reads_every_key() -> None:
    own = kernels(attention=GQA | INDEX, attention_kinds=[])
    seconds = own.index(np.array([1000.0]), own.model.attention)
    bandwidth = own.gpu.memory_bandwidth * own.profile.attention.memory
    assert seconds == pytest.approx(1000 * 4 / bandwidth, rel=rounding(seconds[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_at": [2, 1]}, "moe_at: must ascend, each layer once (got [2, 1])"),
        ({"moe_at": [1, 4]}, "moe_at: must be below layers (4) (got 4)"),
        ({"first_dense": 1}, "moe_at: takes the place of first_dense and moe_every: name one"),
        (
            {"attention_kinds": [{"name": "a", "layers": [4], **GQA}]},
            "attention_kinds[0].layers: must be below layers (4) (got 4)",
        ),
        (
            {"attention_kinds": [{"name": n, "layers": [1], **GQA} for n in ("a", "b")]},
            "attention_kinds[1].layers: names layer 1, which is of kind a already (got 'b')",
        ),
        (
            {"attention_kinds": [{"name": "a", "layers": [layer], **GQA} for layer in (1, 2)]},
            "attention_kinds[1].name: is the name of another kind (got 'a')",
        ),
        ({"attention": {"kind": "linear", "heads": 4}}, "attention.projections: is missing"),
        (
            {"attention": LINEAR | {"window": 4}},
            "attention.window: does not belong to attention of kind",
        ),
        ({"attention": GQA | {"state": 4}}, "attention.state: does not belong to attention of kind gqa"),
        ({"attention": GQA | {"index_heads": 4}}, "attention.index_heads: needs index_dim, index_top_k too"),
    ],
)
def test_what_contradicts_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        model(**changes)
    assert message in str(caught.value)


@pytest.mark.usefixtures("here")
def test_a_run_of_mixed_layers_counts_time_and_memory() -> None:
    """Only the one full layer caches keys; the three others keep a state for each of the sequences."""
    Path("m.json").write_text(json.dumps(MODEL))  # JSON is YAML
    Path("m.json").rename("m.yaml")
    ask = ("run", "s.yaml", "-s", "model=m.yaml", "-s", "trace={synth: {skew: 0.5}}", "--json")
    result = json.loads(moesim(*ask, "-s", "workload.context=1000").out)
    longer = json.loads(moesim(*ask, "-s", "workload.context=2000").out)
    grown = longer["metrics"]["gpu_memory_bytes"]["mean"] - result["metrics"]["gpu_memory_bytes"]["mean"]
    tokens = result["scenario"]["workload"]["tokens_per_gpu"]
    assert grown == pytest.approx(tokens * 1000 * 2 * 2 * 8 * 2, rel=rounding(grown))
    assert longer["metrics"]["step_time_s"]["mean"] > result["metrics"]["step_time_s"]["mean"]


@pytest.mark.usefixtures("here")
def test_presets_model_shows_what_was_read() -> None:
    Path("ckpt").mkdir()
    Path("m.yaml").write_text(json.dumps(MODEL))
    facts = json.loads(moesim("presets", "model", "m.yaml", "--json").out)
    mixed = model()
    assert facts["parameters"]["total"] == mixed.total_params == sum(facts["parameters"]["by_part"].values())
    assert facts["parameters"]["active"] == mixed.active_params
    assert facts["weight_bytes"]["total"] == mixed.weight_bytes(1).total
    assert (facts["kv_bytes_per_token"], facts["state_bytes_per_sequence"]) == (2 * 2 * 8 * 2, 3 * 64 * 4)
    assert [(each["feed_forward"], each["layers"]) for each in facts["layers"]] == [
        ("dense", [0]),
        ("experts", [1, 2]),
        ("dense", [3]),
    ]
    shown = " ".join(moesim("presets", "model", "m.yaml").out.split())
    assert "linear, 4 heads, state of 64 values experts 2 1-2" in shown
    assert format_bytes(facts["kv_bytes_per_token"]) in shown
    assert moesim("presets", "model", "mixtral-8x7b").code == 0
    assert "ckpt/config.json" in refused("presets", "model", "ckpt")
    assert refused("presets", "model").startswith("presets model: needs a PATH")
    assert refused("presets", "gpus", "m.yaml") == "presets: takes no path; only model does (got 'm.yaml')"
