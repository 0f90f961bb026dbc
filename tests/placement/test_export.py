"""Exports are read back as the systems read them, and refused where they could not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from placement.files.native import read_placement
from placement.files.writing import EXPORTERS, FORMATS, check_export, export, how_to_load
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement

# Layer 1 of a model of 4 is dense.
ROWS = [[0, 1, 2, 3, 4, 0], [4, 3, 2, 1, 0, 4], [2, 1, 2, 0, 4, 3]]
LAYERS, HIDDEN = (0, 2, 3), 4


def placement(rows: list[list[int]] = ROWS, slot_gpu: tuple[int, ...] = (0, 0, 1, 1, 2, 2)) -> Placement:
    return Placement(np.array(rows), np.array(slot_gpu), 5, 3, LAYERS, "by hand")


def file_of(name: str) -> str:
    return "out.yaml" if name == "trtllm" else "out.json"


def written(tmp_path: Path, name: str) -> str:
    out = tmp_path / file_of(name)
    export(placement(), out, name, hidden_layers=HIDDEN)
    return out.read_text(encoding="utf-8")


def test_native_is_the_placement_file(tmp_path: Path) -> None:
    written(tmp_path, "native")
    assert read_placement(tmp_path / "out.json") == placement()


def test_sglang_has_one_key_and_a_row_for_every_layer(tmp_path: Path) -> None:
    content = json.loads(written(tmp_path, "sglang"))
    assert list(content) == ["physical_to_logical_map"]
    table = content["physical_to_logical_map"]
    assert len(table) == HIDDEN
    assert [table[layer] for layer in LAYERS] == ROWS
    assert sorted(set(table[1])) == list(range(5))  # a dense row still names valid experts
    assert {len(row) for row in table} == {6}


def test_trtllm_has_three_keys_by_layer_of_the_model(tmp_path: Path) -> None:
    assert yaml.safe_load(written(tmp_path, "trtllm")) == {
        "num_slots": 6,
        "initial_global_assignments": dict(zip(LAYERS, ROWS, strict=True)),
        "layer_updates_per_iter": 0,
    }


def test_vllm_ascend_counts_moe_layers_and_lists_devices(tmp_path: Path) -> None:
    content = json.loads(written(tmp_path, "vllm-ascend"))
    assert list(content) == ["moe_layer_count", "layer_list"]
    assert content["moe_layer_count"] == 3
    for row, layer in enumerate(content["layer_list"]):
        assert (layer["layer_id"], layer["device_count"]) == (row, 3)
        assert [device["device_id"] for device in layer["device_list"]] == [0, 1, 2]
        assert [each for device in layer["device_list"] for each in device["device_expert"]] == ROWS[row]
    # As vllm-ascend makes one tensor of it.
    tensor = np.array([[d["device_expert"] for d in layer["device_list"]] for layer in content["layer_list"]])
    assert tensor.shape == (3, 3, 2)


def test_vllm_has_moe_layers_only_and_names_its_proposal(tmp_path: Path) -> None:
    assert json.loads(written(tmp_path, "vllm")) == ROWS
    assert "#49572" in export(placement(), tmp_path / "again.json", "vllm")
    assert export(placement(), tmp_path / "again.yml", "trtllm") == ""


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_bytes_again(tmp_path: Path, name: str) -> None:
    assert written(tmp_path, name) == written(tmp_path, name)


def test_two_copies_on_a_device_are_refused_where_one_would_be_lost(tmp_path: Path) -> None:
    twice = placement([ROWS[0], ROWS[1], [2, 2, 1, 0, 4, 3]])
    for name in ("sglang", "trtllm", "vllm"):
        export(twice, tmp_path / file_of(name), name, hidden_layers=HIDDEN)
    rule = (
        "vllm-ascend keeps one copy of an expert on a device and would lose others: layer 3: GPU 0 must hold "
        r"one copy of expert 2 only; name another solver, such as swap \(got 2\)"
    )
    with pytest.raises(PlacementError, match=rule):
        export(twice, tmp_path / "ascend.json", "vllm-ascend")
    assert not (tmp_path / "ascend.json").exists()


def test_every_form_that_a_release_reads_says_how_it_is_loaded() -> None:
    commands = {name: how_to_load(placement(), "my map.json", name) for name in FORMATS}
    assert commands == {
        "native": "",
        "sglang": "python -m sglang.launch_server --model-path MODEL --ep-size 3 "
        "--ep-num-redundant-experts 1 --init-expert-location 'my map.json'",
        "trtllm": "trtllm-serve MODEL --ep_size 3 --extra_llm_api_options OPTIONS.yaml, where that file "
        'holds {"moe_config": {"load_balancer": "my map.json"}}',
        "vllm-ascend": "vllm serve MODEL --enable-expert-parallel --additional-config "
        '\'{"eplb_config": {"expert_map_path": "my map.json"}}\'',
        "vllm": "",
    }


UNEQUAL = placement(slot_gpu=(0, 0, 1, 1, 1, 2))
MIXED = placement(slot_gpu=(0, 1, 0, 1, 2, 2))
EMPTY = placement([ROWS[0], [4, 3, 2, 1, 0, -1], ROWS[2]])
REFUSALS: list[tuple[Placement, str]] = [
    (UNEQUAL, r"slots: .* holds equally many slots on each of 3 GPUs, not 1 to 3; 6 slots divide \(got 6\)"),
    (MIXED, r"slot_gpu\[1\]: .* counts slots GPU by GPU, so that this one is on GPU 0; .* \(got 1\)"),
    (EMPTY, r"slot_expert, layer 2, slot 5: .* holds an expert in every slot; .* greedy \(got 'empty'\)"),
]


@pytest.mark.parametrize("name", EXPORTERS)
@pytest.mark.parametrize(("broken", "message"), REFUSALS)
def test_what_a_system_cannot_hold(tmp_path: Path, name: str, broken: Placement, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        export(broken, tmp_path / file_of(name), name, hidden_layers=HIDDEN)
    assert not list(tmp_path.iterdir())
    export(broken, tmp_path / "out")  # the native form holds everything
    assert read_placement(tmp_path / "out") == broken


def test_a_file_that_its_system_would_not_read(tmp_path: Path) -> None:
    with pytest.raises(
        PlacementError, match=r"p.json: must end in .yaml or .yml for TensorRT-LLM \(got '.json'\)"
    ):
        export(placement(), tmp_path / "p.json", "trtllm")
    with pytest.raises(PlacementError, match=r"must end in .json for SGLang \(got ''\)"):
        export(placement(), tmp_path / "p", "sglang", hidden_layers=HIDDEN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "tensorrt"}, "format: no such format; known: native, sglang, trtllm, vllm-ascend, vllm"),
        ({"name": "sglang"}, "model: SGLang counts all layers of the model"),
        ({"name": "sglang", "hidden_layers": 3}, "a layer 3, the model only 3 layers"),
    ],
)
def test_what_must_be_known(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        check_export(placement(), **changes)
