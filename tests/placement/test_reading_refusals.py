"""Broken files of serving systems: one line each, with file, place, rule and value."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from placement.files.reading import load_placement
from placement.files.target import Target
from placement.files.yaml_values import MAX_DEPTH
from placement.problem.errors import PlacementError
from tests.placement.mutation import mutated_bytes
from tests.placement.test_reading import BY_HAND, TARGET
from traces.base.errors import MoesimError

MAP, ASSIGNMENTS = "physical_to_logical_map", "initial_global_assignments"


def sglang(*rows: Any, **more: Any) -> str:
    return json.dumps({MAP: rows, **more})


SGLANG = [
    (sglang([0, 1, 2, 0], epoch=3), ": 'epoch': unknown key; known: physical_to_logical_map"),
    (sglang(**{"k" * 9_999: 1}), f": '{'k' * 58}…: unknown key; known: {MAP}"),
    ('{"physical_to_logical_map": null}', f": {MAP}: must be a list, not null"),
    (
        sglang([0, 1, 2, 0]),
        f": {MAP}: must have 2 rows, one for each MoE layer, or 3, one for each layer of the model (got 1)",
    ),
    (sglang([0, 1, 2, 0], 7), f": {MAP}[1]: must be a list of slots, not an integer"),
    (sglang([0, 1, 2, 0], [2, 1, 0]), f": {MAP}[1]: must have 4 slots as the first (got 3)"),
    (sglang([0], [0, 1, 2, 0], [2, 1, 0, 1]), f": {MAP}[1]: must have 1 slots as the first (got 4)"),
    (sglang([0, 1, 2, 0], [2, 1, 0, 3]), f": {MAP}[1][3]: must be an expert from 0 to 2 (got 3)"),
    (sglang([0, 1, 2, -1], [2, 1, 0, 1]), f": {MAP}[0][3]: must be an expert from 0 to 2 (got -1)"),
    (sglang([0, 1, 2, True], [2, 1, 0, 1]), f": {MAP}[0][3]: must be an integer, not a boolean"),
    (sglang([0, 1, 2, 2**40], [2, 1, 0, 1]), f": {MAP}[0][3]: is out of range (got 1099511627776)"),
    (
        sglang([0, 1, 2], [2, 1, 0]),
        f": {MAP}: SGLang holds equally many slots on each of 2 GPUs (got '3 slots')",
    ),
    (sglang([], []), f": {MAP}: SGLang holds equally many slots on each of 2 GPUs (got '0 slots')"),
    (sglang([0, 1], [2, 1]), f": {MAP}: more experts than slots (got '3 on 2 slots')"),
    (sglang([0, 1, 2, 0], [2, 1, 2, 1]), f": {MAP}: layer 2: expert 0 is in no slot"),
    ('{"physical_to_logical_map": [[0, 1', ":1: is not JSON: Expecting ',' delimiter"),
    (f'{{"{MAP}": [], "{MAP}": []}}', f": '{MAP}': the key stands twice"),
    (sglang([0, 1, 2, float("nan")]), ": is not a JSON number (got 'NaN')"),
]


def trtllm(layers: str, slots: str = "4", more: str = "") -> str:
    return f"num_slots: {slots}\n{ASSIGNMENTS}: {layers}\n{more}"


TWO = "{1: [0, 1, 2, 0], 2: [2, 1, 0, 1]}"
TRTLLM = [
    (f"{ASSIGNMENTS}: {TWO}", ": num_slots: is missing"),
    (
        trtllm(TWO, more="ep_size: 2"),
        ": 'ep_size': unknown key; known: num_slots, " + ASSIGNMENTS + ", layer_up",
    ),
    (trtllm(TWO, "'4'"), ": num_slots: must be an integer, not text"),
    (trtllm(TWO, "6"), f": {ASSIGNMENTS}[1]: must have 6 slots, as num_slots says (got 4)"),
    (trtllm("[]"), f": {ASSIGNMENTS}: must be an object, not a list"),
    (trtllm("{}"), f": {ASSIGNMENTS}: names no layer"),
    (
        trtllm("{'1': [0, 1, 2, 0]}"),
        f": {ASSIGNMENTS}: keys must be layers of the model, as numbers (got '1')",
    ),
    (trtllm("{1: [0, 1, 2, 0], 2: 5}"), f": {ASSIGNMENTS}[2]: must be a list of slots, not an integer"),
    (trtllm("{1: [0, 1, 2, 0.0]}"), f": {ASSIGNMENTS}[1][3]: must be an integer, not text"),
    (trtllm("{1: [0, 1, 2, 010]}"), f": {ASSIGNMENTS}[1][3]: must be an integer, not text"),
    (trtllm("{1: [0, 1, 2, 3]}"), f": {ASSIGNMENTS}[1][3]: must be an expert from 0 to 2 (got 3)"),
    (trtllm("{1: [0, 1, 1, 0]}"), f": {ASSIGNMENTS}: layer 1: expert 2 is in no slot"),
    (
        trtllm("{-1: [0, 1, 2, 0]}"),
        ": layers[0]: layer indices must be integers from 0 to 65535, ascending (got",
    ),
    (
        trtllm("{0: [0, 1, 2, 0], 1: [0, 1, 2, 0]}"),
        ": layers: the placement must be for 2 layers from 1 to 2 (got '2 layers from 0 to 1')",
    ),
    (trtllm("{1: [0, 1, 2, 0], 1: [0, 1, 2, 0]}"), ":2: the key stands twice (got 1)"),
    (
        trtllm("{1: &a [0, 1, 2, 0], 2: *a}"),
        ":2: YAML anchors and aliases are not supported: write the value out",
    ),
    (
        trtllm("!!python/object:os.system {}"),
        ":2: YAML tags are not supported (got 'tag:yaml.org,2002:python",
    ),
    (trtllm("{[1]: [0]}"), ":2: keys must be numbers or text"),
    (trtllm("[" * 40), f":2: is nested deeper than {MAX_DEPTH} levels"),
    (trtllm(TWO, more="---\n"), ":3: holds a second YAML document, one was expected"),
    (trtllm("{1: [0, 1"), ":3: is not valid YAML: "),
    (trtllm("\x07"), ": is not valid YAML: it holds a character that YAML forbids"),
]


def ascend(**changes: Any) -> str:
    """The file by hand with the value at one path replaced, a path's steps joined by two underscores."""
    content = json.loads(BY_HAND["vllm-ascend"])
    for path, value in changes.items():
        *way, last = (int(step) if step.isdigit() else step for step in path.split("__"))
        holder = content
        for step in way:
            holder = holder[step]
        holder[last] = value
    return json.dumps(content)


DEVICES = [{"device_id": gpu, "device_expert": [gpu]} for gpu in range(3)]
LAYERS = [{"layer_id": row, "device_count": 3, "device_list": DEVICES} for row in range(2)]
ASCEND = [
    ('{"layer_list": []}', ": moe_layer_count: is missing"),
    (ascend(rank_num=2), ": 'rank_num': unknown key; known: moe_layer_count, layer_list"),
    (ascend(moe_layer_count=58), ": moe_layer_count: must be 2, by the lists as they stand (got 58)"),
    (ascend(layer_list=[]), ": layer_list: must have 2 rows, one for each MoE layer (got 0)"),
    (ascend(layer_list__1=7), ": layer_list[1]: must be an object, not an integer"),
    (
        ascend(layer_list__1__layer_id=4),
        ": layer_list[1].layer_id: must be 1, by the lists as they stand (got 4)",
    ),
    (
        ascend(layer_list__0__device_count=8),
        ": layer_list[0].device_count: must be 2, by the lists as they stand (got 8)",
    ),
    (ascend(layer_list__0__device_list=[]), ": layer_list[0].device_list: names no device"),
    (
        ascend(layer_list__0=LAYERS[0]),
        ": layer_list[1].device_list: must have 3 devices as the first layer (got 2)",
    ),
    (ascend(layer_list=LAYERS), ": gpus: the placement must be for 2 (got 3)"),
    (
        ascend(layer_list__0__device_list__1__device_id=0),
        ": layer_list[0].device_list[1].device_id: must be 1, by the lists as they stand (got 0)",
    ),
    (
        ascend(layer_list__0__device_list__1__device_expert=[2]),
        ": layer_list[0].device_list[1].device_expert: must have 2 slots as the first (got 1)",
    ),
    (
        ascend(layer_list__1__device_list__0__device_expert=[2, 9]),
        ": layer_list[1].device_list[0].device_expert[1]: must be an expert from 0 to 2 (got 9)",
    ),
    (
        ascend(layer_list__0__device_list__1__device_expert=[1, 0]),
        ": layer_list: layer 1: expert 2 is in no slot",
    ),
]

OTHERS = [
    ("[[0, 1, 2, 0]]", ": must have 2 rows, one for each MoE layer (got 1)"),
    ("[[0, 1, 2, 0], [2, 1, 0, 3]]", ": [1][3]: must be an expert from 0 to 2 (got 3)"),
    ("[[0, 1, 2], [2, 1, 0]]", ": vLLM holds equally many slots on each of 2 GPUs (got '3 slots')"),
    (" ", ": is no placement: neither format moesim.placement/1 nor any of physical_to_logical_map, "),
    ("linear", ": is no placement: "),
    ('{"logical_count": [[1, 2, 3]]}', ": is no placement: "),
    ('\ufeff{"physical_to_logical_map": []}', ":1: is not JSON: Unexpected UTF-8 BOM"),
    ("format: moesim.placement/1", ": is no placement: "),
    ('{"format": "moesim.placement/2"}', ": format: needs a newer moesim: "),
]


@pytest.mark.parametrize(("text", "message"), [*SGLANG, *TRTLLM, *ASCEND, *OTHERS])
def test_one_line_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlacementError) as caught:
        load_placement(path, TARGET)
    assert str(caught.value).startswith(f"{path}{message}"), str(caught.value)
    assert str(caught.value).isprintable()


def test_yaml_of_too_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two mappings, five keys, two lists, eight experts and two numbers: 19."""
    (tmp_path / "p").write_text(BY_HAND["trtllm"], encoding="utf-8")
    monkeypatch.setattr("placement.files.yaml_values.MAX_VALUES", 19)
    load_placement(tmp_path / "p", TARGET)
    monkeypatch.setattr("placement.files.yaml_values.MAX_VALUES", 18)
    with pytest.raises(PlacementError, match=r"p:5: holds more than 18 values"):
        load_placement(tmp_path / "p", TARGET)


def test_too_few_rows_where_nobody_knows_all_layers(tmp_path: Path) -> None:
    (tmp_path / "p").write_text(sglang(*[[0, 1]] * 60), encoding="utf-8")
    with pytest.raises(PlacementError, match=r"must have 58 rows, .* or more than 60, .* \(got 60\)"):
        load_placement(tmp_path / "p", Target(experts=2, gpus=1, layers=tuple(range(3, 61))))


@pytest.mark.parametrize("form", ["sglang", "trtllm", "vllm-ascend", "vllm"])
def test_only_our_errors_come_out_of_mutated_files(tmp_path: Path, form: str) -> None:
    chance = random.Random(21)
    path = tmp_path / "p"
    refusals = []
    for _ in range(300):
        path.write_bytes(mutated_bytes(BY_HAND[form], chance))
        try:
            load_placement(path, TARGET).replica_table()
        except MoesimError as error:
            refusals.append(str(error))
    assert len(refusals) > 150
    assert all(refusal.startswith(f"{path}:") and refusal.isprintable() for refusal in refusals)
