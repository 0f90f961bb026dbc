"""Files of serving systems are read as the placement that was exported, or that a hand wrote."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from placement.files.reading import load_placement
from placement.files.target import Target
from placement.files.writing import EXPORTERS, FORMATS, export, keeps_one_copy
from placement.problem.placement import Placement
from tests.placement.random_placements import placements

# Two MoE layers behind a dense one, three experts on two GPUs with two slots each.
TARGET = Target(experts=3, gpus=2, layers=(1, 2), hidden_layers=3)
ROWS = [[0, 1, 2, 0], [2, 1, 0, 1]]

BY_HAND = {
    "sglang": '{"physical_to_logical_map": [[0, 1, 2, 0], [0, 1, 2, 0], [2, 1, 0, 1]]}',
    "sglang, MoE layers only": '{"physical_to_logical_map": [[0, 1, 2, 0], [2, 1, 0, 1]]}',
    "sglang, a dense row of zeros": '{"physical_to_logical_map":[[0,0,0,0],[0,1,2,0],[2,1,0,1]]}',
    "trtllm": """\
initial_global_assignments:
  1: [0, 1, 2, 0]
  2: [2, 1, 0, 1]
layer_updates_per_iter: 0
num_slots: 4
""",
    "trtllm, layers in any order, one to a line, updated by the server": """\
# by hand
---
num_slots: 4
initial_global_assignments:
  2:
  - 2
  - 1
  - 0
  - 1
  1: [0, 1, 2, 0]
layer_updates_per_iter: 2
""",
    "trtllm, without what has a default": """\
num_slots: 4
initial_global_assignments: {1: [0, 1, 2, 0], 2: [2, 1, 0, 1]}
""",
    "vllm-ascend": """\
{"moe_layer_count": 2, "layer_list": [
  {"layer_id": 0, "device_count": 2, "device_list": [
    {"device_id": 0, "device_expert": [0, 1]},
    {"device_id": 1, "device_expert": [2, 0]}]},
  {"layer_id": 1, "device_count": 2, "device_list": [
    {"device_id": 0, "device_expert": [2, 1]},
    {"device_id": 1, "device_expert": [0, 1]}]}]}
""",
    "vllm": "[[0, 1, 2, 0],\n [2, 1, 0, 1]]",
}


@pytest.mark.parametrize("form", BY_HAND)
def test_a_file_by_hand(tmp_path: Path, form: str) -> None:
    (tmp_path / "p").write_text(BY_HAND[form], encoding="utf-8")
    found = load_placement(tmp_path / "p", TARGET)
    system = {"sglang": "SGLang", "trtllm": "TensorRT-LLM", "vllm-ascend": "vllm-ascend", "vllm": "vLLM"}
    origin = f"a file for {system[form.partition(',')[0]]}"
    assert found == Placement(np.array(ROWS), np.array([0, 0, 1, 1]), 3, 2, (1, 2), origin)


def test_tables_without_ids_where_nobody_knows_all_layers(tmp_path: Path) -> None:
    """One that reaches the last MoE layer has a row for every layer, however many come after."""
    for rows in (ROWS, [ROWS[1], *ROWS], [ROWS[1], *ROWS, ROWS[0]]):
        (tmp_path / "p.json").write_text(json.dumps({"physical_to_logical_map": rows}), encoding="utf-8")
        found = load_placement(tmp_path / "p.json", replace(TARGET, hidden_layers=None))
        assert found.slot_expert_LS.tolist() == ROWS


def test_what_libraries_write(tmp_path: Path) -> None:
    """PyYAML in its usual style, as TensorRT-LLM's own script uses it, and indented JSON."""
    assignments = {"num_slots": 4, "initial_global_assignments": dict(zip((1, 2), ROWS, strict=True))}
    (tmp_path / "p.yaml").write_text(yaml.dump(assignments), encoding="utf-8")
    (tmp_path / "p.json").write_text(
        json.dumps(json.loads(BY_HAND["vllm-ascend"]), indent=4), encoding="utf-8"
    )
    for name in ("p.yaml", "p.json"):
        assert load_placement(tmp_path / name, TARGET).slot_expert_LS.tolist() == ROWS


@st.composite
def full_placements(draw: st.DrawFn) -> Placement:
    """Any placement that serving systems can hold."""
    experts, gpus = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    each = draw(st.integers(-(-experts // gpus), 4 + experts))
    layers = sorted(draw(st.sets(st.integers(0, 20), min_size=1, max_size=4)))
    copies = st.lists(
        st.integers(0, experts - 1), min_size=gpus * each - experts, max_size=gpus * each - experts
    )
    rows = [draw(st.permutations([*range(experts), *draw(copies)])) for _ in layers]
    return Placement(np.array(rows), np.repeat(np.arange(gpus), each), experts, gpus, tuple(layers), "solver")


@given(full_placements(), st.integers(0, 3), st.booleans())
def test_reading_what_was_exported_is_the_identity(placement: Placement, more: int, known: bool) -> None:
    hidden_layers = placement.layers[-1] + 1 + more
    target = Target(placement.experts, placement.gpus, placement.layers, hidden_layers if known else None)
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            if keeps_one_copy(name) and _doubled(placement):
                continue
            suffix = EXPORTERS[name].suffixes[0] if name in EXPORTERS else ""
            path = Path(folder) / f"{name}{suffix}"
            export(placement, path, name, hidden_layers=hidden_layers)
            origin = f"a file for {EXPORTERS[name].system}" if name in EXPORTERS else placement.origin
            assert load_placement(path, target) == replace(placement, origin=origin)


def _doubled(placement: Placement) -> bool:
    """Whether a GPU has two copies of an expert."""
    return any(
        len({*zip(row, placement.slot_gpu_S.tolist(), strict=True)}) < placement.slots
        for row in placement.slot_expert_LS.tolist()
    )


@given(placements())
def test_the_native_form_holds_any_placement(placement: Placement) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export(placement, Path(folder) / "p.json")
        target = Target(placement.experts, placement.gpus, placement.layers)
        assert load_placement(Path(folder) / "p.json", target) == placement
