"""TensorRT-LLM's statistics: counts and raw choices, over ranks and iterations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from traces.base.errors import LoadTableError, MoesimError, TraceError
from traces.interop import IMPORTERS, LOAD_IMPORTERS, detect, load_any, open_source
from traces.interop.hints import Hints
from traces.load_table import LoadTable
from traces.meta import TraceMeta

Array = np.ndarray[Any, Any]

ITERATIONS, LAYERS, EXPERTS = (50, 51), (3, 5), 4
META = {"num_experts": EXPERTS, "num_experts_per_token": 2}


def counts(rank: int) -> dict[str, Array]:
    rng = np.random.default_rng(rank)
    return {
        f"{iteration}_{layer}": rng.integers(0, 9, EXPERTS, np.int32)
        for iteration in ITERATIONS
        for layer in LAYERS
    }


def choices(rank: int) -> dict[str, Array]:
    """Ranks and iterations have different numbers of tokens."""
    rng = np.random.default_rng(rank)
    return {
        f"{iteration}_{layer}": rng.random((rank + iteration - 49, EXPERTS))
        .argsort(1)[:, :2]
        .astype(np.int32)
        for iteration in ITERATIONS
        for layer in LAYERS
    }


def write(folder: Path, ranks: int = 2, *, raw: bool = False, meta: Any = META) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "meta_info.json").write_text(json.dumps(meta))
    for rank in range(ranks):
        if raw:
            save_file(choices(rank), folder / f"rank{rank}_raw.safetensors")
        else:
            save_file(counts(rank), folder / f"rank{rank}.safetensors")
    return folder


def test_counts_are_summed_over_ranks(tmp_path: Path) -> None:
    folder = write(tmp_path / "statistics", 11)  # rank 10 sorts before rank 2
    assert detect(folder) is LOAD_IMPORTERS["trtllm"]
    table = open_source(folder, Hints(model="tiny", origin="a test"))
    assert isinstance(table, LoadTable)
    assert (table.model, table.experts, table.layers, table.origin) == ("tiny", 4, LAYERS, "a test")
    for window, iteration in enumerate(ITERATIONS):
        for row, layer in enumerate(LAYERS):
            expected = sum(counts(rank)[f"{iteration}_{layer}"].astype(np.int64) for rank in range(11))
            assert np.array_equal(table.load_WLE[window, row], expected)


def test_counts_are_summed_in_int64(tmp_path: Path) -> None:
    folder = write(tmp_path / "statistics", 0)
    for rank in range(2):
        save_file({"0_0": np.full(4, 2**31 - 1, np.int32)}, folder / f"rank{rank}.safetensors")
    table = open_source(folder)
    assert isinstance(table, LoadTable)
    assert table.load_LE.tolist() == [[2 * (2**31 - 1)] * 4]


def test_raw_choices_are_tokens_with_step_and_rank(tmp_path: Path) -> None:
    folder = write(tmp_path / "statistics", raw=True)
    assert detect(folder) is IMPORTERS["trtllm-raw"]
    trace = load_any(folder, Hints(model="tiny"))
    assert trace.meta == TraceMeta("tiny", 4, 2, LAYERS, "TensorRT-LLM raw statistics", "")
    assert trace.step_T is not None
    assert trace.source_rank_T is not None
    assert trace.source_rank_T.tolist() == [0] * 3 + [1] * 5
    assert trace.step_T.tolist() == [50, 51, 51, 50, 50, 51, 51, 51]
    # Nobody knows which tokens belong together: a batch stands as one request.
    assert trace.request_T.tolist() == [0, 1, 1, 2, 2, 3, 3, 3]
    assert trace.position_T.tolist() == [0, 0, 1, 0, 1, 0, 1, 2]
    expected = np.concatenate([choices(rank)[f"{i}_5"] for rank in range(2) for i in ITERATIONS])
    assert np.array_equal(trace.ids_TLK[:, 1], expected)


def test_where_both_are_there_the_tokens_are_taken(tmp_path: Path) -> None:
    folder = write(write(tmp_path / "statistics"), raw=True)
    assert detect(folder) is IMPORTERS["trtllm-raw"]
    table = LOAD_IMPORTERS["trtllm"].open(folder, Hints())
    assert table.windows == 2


@pytest.mark.parametrize("raw", [False, True])
def test_a_missing_rank_is_named(tmp_path: Path, raw: bool) -> None:
    folder = write(tmp_path / "statistics", 3, raw=raw)
    name = "rank1_raw.safetensors" if raw else "rank1.safetensors"
    (folder / name).unlink()
    with pytest.raises(MoesimError, match=rf"statistics: lacks {name}"):
        open_source(folder)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"num_experts": 4}, "num_experts_per_token: must be a whole number"),
        ({**META, "num_experts": "4"}, "num_experts: must be a whole number"),
        ({**META, "num_experts": 70_000}, "num_experts: must be a whole number from 1 to 65536"),
        ([], "must be a JSON object"),
        ({**META, "num_experts": 5}, r"50_3: must have 5 counts, as meta_info\.json says \(got \(4,\)\)"),
    ],
)
def test_bad_metadata_is_refused(tmp_path: Path, meta: Any, message: str) -> None:
    with pytest.raises(LoadTableError, match=message):
        open_source(write(tmp_path / "statistics", meta=meta))


COUNT_FAULTS: dict[str, tuple[dict[str, Array], str]] = {
    "another iteration": (
        {f"{i}_{layer}": np.ones(4, int) for i in (50, 52) for layer in LAYERS},
        r"rank1\.safetensors: iteration 51, layer 3 stands in rank0\.safetensors or here, not in both",
    ),
    "other keys": ({"model.weight": np.ones(4)}, "tensor: must be named <iteration>_<layer>"),
    "floats": ({k: v.astype(float) for k, v in counts(1).items()}, "must be whole numbers with 1 axes"),
    "choices": (choices(1), "must be whole numbers with 1 axes"),
    "negative": ({k: v - 99 for k, v in counts(1).items()}, "must not be negative"),
}


@pytest.mark.parametrize("fault", COUNT_FAULTS)
def test_bad_counts_are_refused(tmp_path: Path, fault: str) -> None:
    tensors, message = COUNT_FAULTS[fault]
    folder = write(tmp_path / "statistics")
    save_file(tensors, folder / "rank1.safetensors")
    with pytest.raises(LoadTableError, match=message):
        open_source(folder)


def test_a_layer_that_one_iteration_lacks_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "statistics", 1)
    tensors = counts(0)
    del tensors["51_5"]
    save_file(tensors, folder / "rank0.safetensors")
    with pytest.raises(LoadTableError, match="lacks layer 5 of iteration 51"):
        open_source(folder)


RAW_FAULTS: dict[str, tuple[dict[str, Array], str]] = {
    "other iterations": (
        {f"{i}_{layer}": np.ones((1, 2), int) for i in (50, 52) for layer in LAYERS},
        r"rank1_raw\.safetensors: must have the iterations and layers of rank0_raw\.safetensors",
    ),
    "layers of other lengths": (
        {**choices(1), "50_5": np.ones((9, 2), int)},
        r"50_5: must have shape \(2, 2\) \(got \(9, 2\)\)",
    ),
    "another K": (
        {k: np.zeros((1, 3), int) for k in choices(1)},
        r"50_3: must have shape \(1, 2\) \(got \(1, 3\)\)",
    ),
    "an id beyond E": ({k: v + 9 for k, v in choices(1).items()}, "layer 3, token 3: expert id"),
    "a layer that nobody wrote": (
        {k: v * (n > 0) for n, (k, v) in enumerate(choices(1).items())},
        "was not written by a router, which chooses different experts; others of this token were",
    ),
    "counts": (counts(1), "must be whole numbers with 2 axes"),
}


@pytest.mark.parametrize("fault", RAW_FAULTS)
def test_bad_choices_are_refused(tmp_path: Path, fault: str) -> None:
    tensors, message = RAW_FAULTS[fault]
    folder = write(tmp_path / "statistics", raw=True)
    save_file(tensors, folder / "rank1_raw.safetensors")
    with pytest.raises(TraceError, match=message):
        load_any(folder)


@pytest.mark.parametrize("raw", [False, True])
def test_cut_anywhere_a_file_is_refused(tmp_path: Path, raw: bool) -> None:
    folder = write(tmp_path / "statistics", 1, raw=raw)
    path = folder / ("rank0_raw.safetensors" if raw else "rank0.safetensors")
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(MoesimError, match=r"rank0(_raw)?\.safetensors: is (damaged|empty)"):
            open_source(folder)
