"""Damaged files of other systems: an importer answers with a MoesimError or something valid, nothing else."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.traces.mutations import damaged_bytes
from tests.traces.random_traces import random_trace
from traces.base.errors import MoesimError
from traces.interop import IMPORTERS, LOAD_IMPORTERS, detect, importer
from traces.interop.hints import Hints
from traces.interop.recording import Recording

MUTATIONS = 300
HINTS = Hints(model="m", experts=8, top_k=2, layers=(1, 3), hidden_layers=4)
TRACE = random_trace(lengths=(4, 1, 3))


def hidden() -> np.ndarray[Any, Any]:
    """The tokens with rows for 4 hidden layers, of which 1 and 3 are MoE layers."""
    hidden_TLK = np.zeros((8, 4, 2), np.int32)
    hidden_TLK[:, [1, 3]] = TRACE.ids_TLK
    return hidden_TLK


def rows() -> list[dict[str, Any]]:
    return [
        {
            "request": int(TRACE.request_T[t]),
            "token": int(TRACE.position_T[t]),
            "layer": layer,
            "experts": ids,
        }
        for t in range(8)
        for layer, ids in zip((1, 3), TRACE.ids_TLK[t].tolist(), strict=True)
    ]


def write_npy(path: Path) -> None:
    np.save(path, hidden())


def write_npz_layers(path: Path) -> None:
    np.savez(path, experts_1=TRACE.ids_TLK[:, 0], experts_3=TRACE.ids_TLK[:, 1], request=TRACE.request_T)


def write_csv(path: Path) -> None:
    lines = [f"{r['request']},{r['token']},{r['layer']},{' '.join(map(str, r['experts']))}" for r in rows()]
    path.write_text("\n".join(["request,token,layer,experts", *lines]) + "\n")


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))


def write_raw_response(path: Path) -> None:
    text = base64.b64encode(hidden().tobytes()).decode()
    path.write_text(json.dumps({"meta_info": {"routed_experts": text}}) + "\n")


def write_npy_response(path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, hidden().astype(np.uint8))
    text = base64.b64encode(stream.getvalue()).decode()
    path.write_text(json.dumps({"choices": [{"routed_experts": text}]}, indent=1))


def write_counts(path: Path) -> None:
    path.write_text(json.dumps({"logical_count": [[0] * 8, [1] * 8, [0] * 8, [2] * 8]}))


def write_count_csv(path: Path) -> None:
    path.write_text(
        "layer_id,expert_id,count\n" + "".join(f"{1 + e % 2 * 2},{e},{10 * e + 1}\n" for e in range(8))
    )


def write_nested_response(path: Path) -> None:
    ids = hidden().tolist()
    path.write_text(json.dumps({"prompt_routed_experts": ids[:4], "choices": [{"routed_experts": ids[4:]}]}))


def write_shaped_response(path: Path) -> None:
    data = base64.b64encode(hidden().astype(np.uint8).tobytes()).decode()
    value = {"data": data, "shape": [8, 4, 2], "dtype": "uint8", "start": 3}
    path.write_text(json.dumps([{"choices": [{"routed_experts": value}]}]))


def write_trtllm(path: Path) -> None:
    (path.parent / "meta_info.json").write_text('{"num_experts": 8, "num_experts_per_token": 2}')
    save_file({"7_1": np.arange(8), "7_3": np.arange(8)}, path)


def write_trtllm_raw(path: Path) -> None:
    write_trtllm(path)
    save_file({"7_1": TRACE.ids_TLK[:, 0], "7_3": TRACE.ids_TLK[:, 1]}, path)


def slots() -> Any:
    torch = pytest.importorskip("torch")
    slots_LTK = np.full((4, 8, 8), -1, np.int32)
    slots_LTK[[1, 3], :, :2] = TRACE.ids_TLK.transpose(1, 0, 2)
    return torch.tensor(slots_LTK)


def write_stat(path: Path) -> None:
    torch = pytest.importorskip("torch")
    count = torch.tensor([[[0] * 8, [1] * 8, [0] * 8, [2] * 8]], dtype=torch.int32)
    torch.save({"rank": 0, "logical_count": count}, path)


def write_records(path: Path) -> None:
    torch = pytest.importorskip("torch")
    record = {
        "forward_pass_id": 3,
        "rank": 0,
        "input_ids": [5] * 8,
        "positions": [*range(8)],
        "extend_seq_lens": [8],
        "topk_ids_of_layer": slots(),
        "global_physical_count": torch.tensor([[0] * 8, [1] * 8, [0] * 8, [2] * 8]),
    }
    experts = torch.arange(8).repeat(4, 1)
    torch.save({"records": [record], "last_physical_to_logical_map": experts}, path)


# Name of the layout, of the file, what writes it; of a folder's layout the folder is read.
LAYOUTS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "npy": ("npy", "t.npy", write_npy),
    "npz-layers": ("npz-layers", "t.npz", write_npz_layers),
    "csv": ("csv", "t.csv", write_csv),
    "jsonl": ("jsonl", "t.jsonl", write_jsonl),
    "raw response": ("routed-experts", "t.jsonl", write_raw_response),
    "npy response": ("routed-experts", "t.json", write_npy_response),
    "nested response": ("routed-experts", "t.json", write_nested_response),
    "shaped response": ("routed-experts", "t.json", write_shaped_response),
    "count-csv": ("count-csv", "t.csv", write_count_csv),
    "logical_count": ("logical-count", "t.json", write_counts),
    "trtllm": ("trtllm", "s/rank0.safetensors", write_trtllm),
    "trtllm-raw": ("trtllm-raw", "s/rank0_raw.safetensors", write_trtllm_raw),
    "sglang-stat": ("sglang-stat", "t.pt", write_stat),
    "sglang-per-pass": ("sglang-per-pass", "t.pt", write_records),
    "sglang-per-token": ("sglang-per-token", "t.pt", write_records),
}


def outcome(layout: str, path: Path) -> str:
    """ "read" or "refused"; any other exception passes through and fails the test."""
    try:
        opened = importer(layout).open(path, HINTS)
        if isinstance(opened, Recording):
            opened.read()
    except MoesimError as error:
        return "refused" if "\n" not in str(error) else "refused in more than one line"
    return "read"


def prepared(tmp_path: Path, name: str) -> tuple[str, Path, Path]:
    """The layout, the file, and what to read: the file, or the folder that it belongs to."""
    layout, file, write = LAYOUTS[name]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    write(path)
    source = path.parent if "/" in file else path
    assert outcome(layout, source) == "read"
    return layout, path, source


NAMES = [
    pytest.param(name, marks=pytest.mark.executor) if name.startswith("sglang") else name for name in LAYOUTS
]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes(tmp_path: Path, name: str) -> None:
    layout, path, source = prepared(tmp_path, name)
    outcomes: Counter[str] = Counter()
    for content in damaged_bytes(path.read_bytes(), MUTATIONS):
        path.write_bytes(content)
        outcomes[outcome(layout, source)] += 1
        detect(source)
    assert outcomes.keys() <= {"read", "refused"}
    assert outcomes["refused"] > MUTATIONS // 10


@pytest.mark.parametrize("name", NAMES)
def test_cut_anywhere(tmp_path: Path, name: str) -> None:
    """Only rows of text do not tell that some are missing, where all layers of the last token are there."""
    layout, path, source = prepared(tmp_path, name)
    whole = path.read_bytes()
    outcomes = Counter[str]()
    for length in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:length])
        outcomes[outcome(layout, source)] += 1
    assert outcomes.keys() <= ({"read", "refused"} if name in ("csv", "jsonl", "count-csv") else {"refused"})
    assert outcomes["refused"] > 50


@pytest.mark.parametrize("name", [*IMPORTERS, *LOAD_IMPORTERS])
def test_a_huge_file_of_something_else_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A terabyte of zeros, of which no importer may read much."""
    monkeypatch.setattr("traces.base.memory.physical_memory", lambda: 2**33)
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert detect(path) is None
    with pytest.raises(MoesimError, match="huge"):
        importer(name).open(path, HINTS)
