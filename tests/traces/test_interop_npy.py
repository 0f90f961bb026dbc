"""Arrays of numpy: .npy of requests, read in windows, and .npz of router outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traces.interop.npy as module
from tests.traces.random_traces import random_trace, same
from traces.base.errors import TraceError
from traces.interop import IMPORTERS, detect, load_any
from traces.interop.hints import Hints
from traces.interop.recording import moe_rows
from traces.trace_file import read_trace

KNOWN = Hints(model="tiny", experts=8, layers=(1, 3), origin="a test", licence="CC0-1.0")
TRACE = random_trace(weights=None)


def save(path: Path, ids_TLK: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.save(path, ids_TLK)
    return path


def requests(folder: Path, layers: int = 2) -> Path:
    """TRACE as a folder with a file for each request, a row for each of ``layers`` hidden layers."""
    for index in range(3):
        ids_TLK = TRACE.select_requests(index, index + 1).ids_TLK
        if layers > 2:
            hidden_TLK = np.zeros((len(ids_TLK), layers, 2), np.uint8)
            hidden_TLK[:, [1, 3]] = ids_TLK
            ids_TLK = hidden_TLK
        save(folder / f"{index}.npy", ids_TLK)
    return folder


@pytest.mark.parametrize("layers", [2, 5])
def test_a_folder_of_requests(tmp_path: Path, layers: int) -> None:
    folder = requests(tmp_path / "requests", layers)
    assert detect(folder) is IMPORTERS["npy"]
    assert same(load_any(folder, KNOWN), TRACE)


def test_windows_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = requests(tmp_path / "requests", 5)
    monkeypatch.setattr(module, "_WINDOW_BYTES", 20)  # two tokens
    IMPORTERS["npy"].open(folder, KNOWN).write(tmp_path / "t.parquet")
    assert same(read_trace(tmp_path / "t.parquet"), TRACE)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i4", "i8"])
def test_any_integer_type(tmp_path: Path, dtype: str) -> None:
    path = save(tmp_path / "t.npy", TRACE.select_requests(0, 1).ids_TLK.astype(dtype))
    found = load_any(path, KNOWN)
    assert found.ids_TLK.dtype == np.uint8
    assert np.array_equal(found.ids_TLK, TRACE.ids_TLK[:4])


def test_dense_layers_are_told_by_what_nobody_wrote(tmp_path: Path) -> None:
    """Zeros or −1 in all columns; a token of an expert layer has K different ids."""
    hidden_TLK = np.full((4, 5, 2), -1)
    hidden_TLK[:, 0] = 0
    hidden_TLK[:, [1, 3]] = TRACE.ids_TLK[:4]
    found = load_any(save(tmp_path / "t.npy", hidden_TLK), Hints(experts=8))
    assert found.meta.layers == (1, 3)
    assert np.array_equal(found.ids_TLK, TRACE.ids_TLK[:4])


def test_with_one_expert_per_token_no_layer_looks_dense(tmp_path: Path) -> None:
    path = save(tmp_path / "t.npy", np.zeros((2, 3, 1), np.uint8))
    assert load_any(path, Hints(experts=2)).meta.layers == (0, 1, 2)


def test_rows_must_be_the_models_layers() -> None:
    ids_TLK, file = np.zeros((1, 4, 2), np.uint8), Path("t.npy")
    assert moe_rows(ids_TLK, Hints(layers=(1, 3), hidden_layers=4), file=file) == ([1, 3], (1, 3))
    with pytest.raises(TraceError, match=r"layers: has 4 layers, tiny has 2 MoE layers of 5"):
        moe_rows(ids_TLK, Hints(model="tiny", layers=(1, 3), hidden_layers=5), file=file)
    with pytest.raises(TraceError, match=r"must have at most 4096 layers \(got 5000\)"):
        moe_rows(np.zeros((1, 5000, 2), np.uint8), Hints(), file=file)


def test_ids_beyond_the_experts_are_named_by_layer_and_token(tmp_path: Path) -> None:
    ids_TLK = TRACE.ids_TLK.copy()
    ids_TLK[5, 1, 0] = 8
    with pytest.raises(TraceError, match=r"layer 3, token 5: expert id must be .* below 8 \(got 8\)"):
        load_any(save(tmp_path / "t.npy", ids_TLK), KNOWN)


FAULTS: dict[str, tuple[Any, str]] = {
    "floats": (np.zeros((2, 2, 2)), r"must be whole numbers \[tokens, layers, K\] \(got 'float64"),
    "two axes": (np.zeros((2, 2), int), r"must be whole numbers \[tokens, layers, K\]"),
    "no token": (np.zeros((0, 2, 2), int), r"has no tokens"),
    "no column": (np.zeros((2, 2, 0), int), r"has no tokens"),
    "Fortran order": (np.asfortranarray(np.zeros((2, 3, 4), int)), "must be in C order"),
    "objects": (np.full((2, 2, 2), None), "must be whole numbers"),
    "all dense": (np.zeros((2, 2, 2), int), "no layer in which tokens choose different experts"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_arrays_are_refused(tmp_path: Path, fault: str) -> None:
    array, message = FAULTS[fault]
    with pytest.raises(TraceError, match=message):
        load_any(save(tmp_path / "t.npy", array), Hints(experts=8))


def test_a_file_that_claims_more_than_it_holds_is_refused_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "t.npy", TRACE.ids_TLK)
    content = path.read_bytes().replace(b"(8, 2, 2)", b"(9**9,2,2)")
    path.write_bytes(content)
    with pytest.raises(TraceError, match="damaged"):
        load_any(path, KNOWN)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TraceError, match="damaged"):
        load_any(path, KNOWN)


def test_requests_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = requests(tmp_path / "requests")
    save(folder / "9.npy", np.zeros((3, 2, 4), np.uint8))
    with pytest.raises(TraceError, match=r"9\.npy: must have 2 layers and 2 experts per token"):
        load_any(folder, KNOWN)


def test_a_model_with_another_k_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "t.npy", TRACE.ids_TLK)
    with pytest.raises(TraceError, match=r"t\.npy: tiny chooses 4 experts per token \(got 2\)"):
        load_any(path, Hints(model="tiny", experts=8, top_k=4))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"holds no \.npy file"):
        IMPORTERS["npy"].open(tmp_path, KNOWN)


def layers_npz(path: Path, **change: Any) -> Path:
    """A trace as the outputs of its routers, layer by layer."""
    trace = random_trace(weights=np.float32)
    assert trace.weights_TLK is not None
    arrays: dict[str, Any] = {"request": trace.request_T, "position": trace.position_T}
    for index, layer in enumerate(trace.meta.layers):
        arrays[f"experts_{layer}"] = trace.ids_TLK[:, index].astype(np.int64)
        arrays[f"weights_{layer}"] = trace.weights_TLK[:, index]
    arrays |= change
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_router_outputs_layer_by_layer(tmp_path: Path) -> None:
    path = layers_npz(tmp_path / "t.npz")
    assert detect(path) is IMPORTERS["npz-layers"]
    assert same(load_any(path, KNOWN), random_trace(weights=np.float32))
    counted = load_any(layers_npz(path, position=None), KNOWN)
    assert same(counted, random_trace(weights=np.float32))
    alone = load_any(layers_npz(path, position=None, request=None), KNOWN)
    assert alone.position_T.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts_3": np.zeros((7, 2), int)}, r"experts_3: must have shape \(8, 2\), as experts_1"),
        ({"experts_3": np.tile([9, 1], (8, 1))}, r"layer 3, token 0: expert id"),
        ({"experts_3": np.full((8, 2), 0)}, r"layer 3, token 0: was not written by a router"),
        ({"weights_3": None}, r"lacks the array weights_3"),
        (
            {"experts_3": None, "experts_2": TRACE.ids_TLK[:, 0], "weights_2": np.ones((8, 2))},
            r"layers: must be MoE layers of tiny \(got '1, 2'\)",
        ),
        ({"request": np.arange(8)[::-1]}, r"request, token 1: requests must be numbered"),
        (
            {"request": np.zeros(3, int), "position": None},
            r"request: must have 8 entries, one for each",
        ),
    ],
)
def test_router_outputs_that_do_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = layers_npz(tmp_path / "t.npz", **change)
    with pytest.raises(TraceError, match=message):
        load_any(path, KNOWN)
