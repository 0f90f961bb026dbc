"""Importers: what each layout becomes, and what is refused."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.traces.random_traces import random_trace, same
from traces.base.errors import TraceError
from traces.interop import IMPORTERS, LOAD_IMPORTERS, detect, importer, load_any, open_source
from traces.interop.hints import Hints
from traces.routing import RoutingTrace
from traces.trace_file import TraceFile, read_trace
from traces.trace_writer import write_trace


def save(path: Path, trace: RoutingTrace, **change: Any) -> Path:
    """``trace`` as one .npz; None leaves an array out."""
    arrays = {
        "topk_ids": trace.ids_TLK,
        "topk_weights": trace.weights_TLK,
        "request_offsets": trace.request_offsets,
        "position": trace.position_T,
        **change,
    }
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_npz_becomes_the_trace(tmp_path: Path) -> None:
    trace = random_trace()
    path = save(tmp_path / "t.npz", trace, category=np.array(["b", "a", "b"]))
    found = load_any(path, Hints(model="tiny", experts=8, layers=(1, 3), origin="a test", licence="CC0-1.0"))
    assert found.categories == ("a", "b")
    assert found.category_T is not None
    assert found.category_T.tolist() == [1, 1, 1, 1, 0, 1, 1, 1]
    for name in ("ids_TLK", "weights_TLK", "request_T", "position_T"):
        assert np.array_equal(getattr(found, name), getattr(trace, name))
    assert found.meta == trace.meta


def test_npz_without_what_is_optional(tmp_path: Path) -> None:
    trace = random_trace()
    found = load_any(save(tmp_path / "t.npz", trace, topk_weights=None, position=None), Hints(experts=8))
    assert found.weights_TLK is None
    assert found.meta.layers == (0, 1)
    assert found.position_T.tolist() == [0, 1, 2, 3, 0, 0, 1, 2]


def test_npz_in_any_number_type_and_order(tmp_path: Path) -> None:
    trace = random_trace()
    path = save(
        tmp_path / "t.npz",
        trace,
        topk_ids=np.asfortranarray(trace.ids_TLK.astype(">i8")),
        topk_weights=np.asarray(trace.weights_TLK).astype(np.float64),
    )
    found = load_any(path, Hints(model="tiny", experts=8, layers=(1, 3), origin="a test", licence="CC0-1.0"))
    assert np.array_equal(found.ids_TLK, trace.ids_TLK)
    assert found.weights_TLK is not None
    assert found.weights_TLK.dtype == np.float32


NPZ_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no offsets": (
        {"request_offsets": None},
        "lacks the array request_offsets; it has position, topk_ids, topk_weights",
    ),
    "offsets end early": (
        {"request_offsets": np.array([0, 4, 7])},
        "request_offsets: must end at 8, the number of tokens (got 7)",
    ),
    "offsets start late": (
        {"request_offsets": np.array([1, 8])},
        "request_offsets: must start at 0 and name at least one request",
    ),
    "empty request": (
        {"request_offsets": np.array([0, 4, 4, 8])},
        "request_offsets: must ascend: a request has at least one token (got 'request 1')",
    ),
    "offsets fall": (
        {"request_offsets": np.array([0, 5, 4, 8])},
        "request_offsets: must ascend: a request has at least one token (got 'request 1')",
    ),
    "unsigned offsets fall": (
        {"request_offsets": np.array([0, 5, 4, 8], np.uint8)},
        "request_offsets: must ascend: a request has at least one token (got 'request 1')",
    ),
    "ids as floats": (
        {"topk_ids": np.zeros((8, 2, 2))},
        "topk_ids: must be whole numbers with 3 axes (got 'float64 (8, 2, 2)')",
    ),
    "no tokens": (
        {"topk_ids": np.zeros((0, 2, 2), np.uint8), "request_offsets": np.array([0, 0])},
        "request_offsets: must ascend: a request has at least one token (got 'request 0')",
    ),
    "weights of another shape": (
        {"topk_weights": np.zeros((8, 2, 1), np.float16)},
        "topk_weights: must have shape (8, 2, 2) (got (8, 2, 1))",
    ),
    "positions of another length": (
        {"position": np.arange(7)},
        "position: must have 8 entries, one for each token (got 7)",
    ),
    "huge position": (
        {"position": np.full(8, 2**40)},
        "position: must be between 0 and 2147483647 (got 1099511627776)",
    ),
    "category of another length": (
        {"category": np.array(["a"])},
        "category: must have one entry for each of 3 requests (got 1)",
    ),
    "expert twice": (
        {"topk_ids": np.tile(np.array([3, 5, 3], np.uint8), (8, 2, 1)), "topk_weights": None},
        "experts_0, token 0: an expert is named twice (got 3)",
    ),
    "id too large": (
        {"topk_ids": np.tile([9, 1], (8, 2, 1))},
        "layer 0, token 0: expert id must be at least 0 and below 8 (got 9)",
    ),
    "negative id": (
        {"topk_ids": np.tile([-1, 1], (8, 2, 1))},
        "layer 0, token 0: expert id must be at least 0 and below 8 (got -1)",
    ),
    "NaN": (
        {"topk_weights": np.full((8, 2, 2), np.nan)},
        "weights_0, token 0: gate weight must be finite and not negative (got nan)",
    ),
}


@pytest.mark.parametrize("fault", NPZ_FAULTS)
def test_a_fault_in_npz_is_named(tmp_path: Path, fault: str) -> None:
    change, message = NPZ_FAULTS[fault]
    path = save(tmp_path / "t.npz", random_trace(), **change)
    with pytest.raises(TraceError) as caught:
        load_any(path, Hints(experts=8))
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"does not tell the number of experts: name it \(--experts N; the largest id is 7\)"),
        ({"experts": 8, "layers": (1, 2, 3)}, r"layers: must be 3, as the model has \(got 2\)"),
        ({"experts": 8, "layers": (3, 1)}, "layers: must ascend"),
        ({"experts": 70_000}, "experts: must be between 1 and 65536"),
    ],
)
def test_what_must_be_named(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "t.npz", random_trace(seed=3))
    with pytest.raises(TraceError, match=message):
        load_any(path, Hints(**given))


def save_requests(folder: Path, arrays: list[np.ndarray[Any, Any]]) -> Path:
    folder.mkdir()
    for index, ids_TLK in enumerate(arrays):
        np.savez(folder / f"{index:03}.npz", routed_experts=ids_TLK)
    return folder


def test_a_folder_of_requests(tmp_path: Path) -> None:
    trace = random_trace()
    parts = [trace.select_requests(r, r + 1).ids_TLK.astype(np.int32) for r in range(3)]
    folder = save_requests(tmp_path / "requests", parts)
    found = load_any(folder, Hints(model="tiny", experts=8, layers=(1, 3)))
    assert np.array_equal(found.ids_TLK, trace.ids_TLK)
    assert np.array_equal(found.request_T, trace.request_T)
    assert np.array_equal(found.position_T, trace.position_T)
    assert found.weights_TLK is None
    alone = load_any(folder / "002.npz", Hints(experts=8))
    assert np.array_equal(alone.ids_TLK, trace.select_requests(2, 3).ids_TLK)


def test_hidden_layers_without_experts_are_left_out(tmp_path: Path) -> None:
    """vLLM and SGLang give a row for every hidden layer; here 1 and 3 of 5 are MoE layers."""
    trace = random_trace(lengths=(6,))
    hidden_TLK = np.zeros((6, 5, 2), np.uint8)
    hidden_TLK[:, [1, 3]] = trace.ids_TLK
    folder = save_requests(tmp_path / "requests", [hidden_TLK])
    found = load_any(folder, Hints(experts=8, layers=(1, 3)))
    assert np.array_equal(found.ids_TLK, trace.ids_TLK)
    assert found.meta.layers == (1, 3)
    assert same(load_any(folder, Hints(experts=8)), found)  # told by the zeros


def test_the_prompts_part_comes_first(tmp_path: Path) -> None:
    trace = random_trace(lengths=(6,))
    path = tmp_path / "r.npz"
    np.savez(path, prompt_routed_experts=trace.ids_TLK[:4], routed_experts=trace.ids_TLK[4:])
    found = load_any(path, Hints(experts=8, layers=(1, 3)))
    assert np.array_equal(found.ids_TLK, trace.ids_TLK)
    assert found.position_T.tolist() == [0, 1, 2, 3, 4, 5]
    np.savez(path, prompt_routed_experts=trace.ids_TLK)
    assert detect(path) is IMPORTERS["npz-requests"]
    assert load_any(path, Hints(experts=8)).tokens == 6
    np.savez(path, prompt_routed_experts=trace.ids_TLK[:, :1], routed_experts=trace.ids_TLK)
    with pytest.raises(TraceError, match=r"prompt_routed_experts: must have the layers and K of routed_exp"):
        load_any(path, Hints(experts=8))
    np.savez(path, routed_experts=trace.ids_TLK, position=np.arange(4))
    with pytest.raises(TraceError, match=r"position: must have 6 entries, one for each token of routed_exp"):
        load_any(path, Hints(experts=8))


@pytest.mark.parametrize(
    ("name", "text", "shows"),
    [
        (
            "a.json",
            '{"type": "x"}\n{"id": 1}\n',
            "is JSON lines with type, id: it is no trace",
        ),
        (
            "a.csv",
            "time,layer,value\n1,2,3\n",
            "is text whose first line names time, layer, value: it is n",
        ),
        ("a.bin", "\x01\x02", "is no trace, no load table, and of none of the layouts npz, "),
    ],
)
def test_what_is_of_no_layout_is_told_by_what_it_shows(
    tmp_path: Path, name: str, text: str, shows: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TraceError) as caught:
        open_source(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {shows}")


def test_requests_that_differ_in_shape_are_refused(tmp_path: Path) -> None:
    two, three = random_trace().ids_TLK, random_trace(layers=(1, 3, 5)).ids_TLK
    folder = save_requests(tmp_path / "requests", [two, three])
    with pytest.raises(TraceError, match=r"001\.npz: must have 2 layers and 2 experts per token"):
        load_any(folder, Hints(experts=8))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert detect(tmp_path) is None
    with pytest.raises(TraceError, match=r"holds no \.npz file"):
        IMPORTERS["npz-requests"].open(tmp_path, Hints(experts=8))


def with_entry(path: Path, name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """An .npz whose array ``name`` is ``content``."""
    save(path, random_trace(), **{name: None})
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr(f"{name}.npy", content)
    return path


def npy(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            npy((2**40, 2, 2)) + b"\0" * 32,
            r"topk_ids: is damaged: shape \(1099511627776, 2, 2\) does not match 32 bytes",
        ),
        (npy((8, 2, 2)) + b"\0" * 31, "does not match 31 bytes"),
        (npy((8, 2, 2), "|O") + b"\0" * 32, r"must be whole numbers with 3 axes \(got 'object"),
        (npy((-8, -2, 2)) + b"\0" * 32, "damaged"),
        (b"\x93NUMPY\x03\x00", "npy version"),
        (b"not an array", "damaged"),
        (b"", "damaged"),
    ],
)
def test_an_array_that_lies_is_refused_before_it_is_allocated(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        load_any(with_entry(tmp_path / "t.npz", "topk_ids", content), Hints(experts=8))


def test_a_claimed_size_beyond_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traces.base.memory.physical_memory", lambda: 100)
    with pytest.raises(TraceError, match=r"array topk_ids needs 0\.0 GiB"):
        load_any(save(tmp_path / "t.npz", random_trace()), Hints(experts=8))


def test_a_zip_that_lies_about_its_expansion_is_refused(tmp_path: Path) -> None:
    path = with_entry(tmp_path / "t.npz", "topk_ids", npy((8, 2, 2)) + b"\0" * 32)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last one of the directory; its size field is at +24
    content[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(TraceError, match=r"topk_ids: .*expand further than its compression can"):
        load_any(path, Hints(experts=8))


def test_parquet_by_other_tools(tmp_path: Path) -> None:
    trace = random_trace(weights=np.float32, candidates=4)
    write_trace(trace, tmp_path / "ours.parquet")
    table = pq.read_table(tmp_path / "ours.parquet").replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "theirs.parquet")
    found = load_any(
        tmp_path / "theirs.parquet", Hints(model="tiny", experts=8, origin="a test", licence="CC0-1.0")
    )
    assert same(found, trace)
    with pytest.raises(TraceError, match="does not tell the number of experts"):
        load_any(tmp_path / "theirs.parquet")
    part = load_any(tmp_path / "theirs.parquet", Hints(experts=8, layers=(3,)))
    assert np.array_equal(part.ids_TLK[:, 0], trace.ids_TLK[:, 1])
    with pytest.raises(TraceError, match="lacks column experts_2"):
        load_any(tmp_path / "theirs.parquet", Hints(experts=8, layers=(2,)))


def test_parquet_without_routing_is_no_import(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    assert detect(tmp_path / "t.parquet") is None
    with pytest.raises(TraceError, match="lacks columns experts_<layer>"):
        IMPORTERS["parquet"].open(tmp_path / "t.parquet", Hints(experts=8))


def test_our_own_trace_needs_nothing_named(tmp_path: Path) -> None:
    write_trace(random_trace(), tmp_path / "t.parquet")
    assert detect(tmp_path / "t.parquet") is None
    assert same(load_any(tmp_path / "t.parquet"), random_trace())
    opened = open_source(tmp_path / "t.parquet")
    assert isinstance(opened, TraceFile)
    opened.close()


def test_importers_by_name() -> None:
    assert importer("npz") is IMPORTERS["npz"]
    with pytest.raises(TraceError, match=r"--from: unknown format, known are: npz, npz-requests, .*trtllm"):
        importer("zip")


def test_the_documentation_names_every_importer_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs/importers.md").read_text(encoding="utf-8")
    tokens, counts = page.split("## Counts")
    for part, known in ((tokens, IMPORTERS), (counts, LOAD_IMPORTERS)):
        assert {*re.findall(r"^\| `([a-z-]+)` \| `convert ", part, re.MULTILINE)} == {*known}


def test_detecting_never_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    assert detect(tmp_path / "pipe.npz") is None


@pytest.mark.shared
def test_gpt_oss_converts(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/gptoss20b/decode_routing.npz"
    trace = load_any(source, Hints(model="gpt-oss-20b", experts=32, licence="Apache-2.0"))
    write_trace(trace, tmp_path / "t.parquet")
    back = read_trace(tmp_path / "t.parquet")
    assert same(back, trace)
    with np.load(source) as npz:
        assert np.array_equal(back.ids_TLK, npz["topk_ids"])
        assert np.array_equal(back.request_offsets, npz["request_offsets"])
        names = [back.categories[code] for code in np.asarray(back.category_T)[back.request_offsets[:-1]]]
        assert names == npz["category"].tolist()
    assert json.dumps(back.meta.to_dict()) == json.dumps(trace.meta.to_dict())


def test_offsets_may_be_unsigned(tmp_path: Path) -> None:
    trace = random_trace()
    path = save(tmp_path / "t.npz", trace, request_offsets=trace.request_offsets.astype(np.uint64))
    assert load_any(path, Hints(experts=8)).request_T.tolist() == trace.request_T.tolist()


def test_a_request_column_without_entries_is_refused(tmp_path: Path) -> None:
    ids = random_trace().ids_TLK
    np.savez(tmp_path / "t.npz", experts_1=ids[:, 0], request=np.zeros(0, np.int32))
    with pytest.raises(TraceError, match=r"request: must have 8 entries, one for each token \(got 0\)"):
        load_any(tmp_path / "t.npz", Hints(experts=8))


def test_an_archive_of_a_version_to_come_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "t.npz", random_trace())
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 6] = 91  # the version that is needed to unpack
    path.write_bytes(content)
    assert detect(path) is None
    with pytest.raises(TraceError, match=r"t\.npz: is no trace, no load table"):
        open_source(path)


def test_a_probe_that_fails_means_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> bool:
        raise MemoryError

    monkeypatch.setattr(type(IMPORTERS["npz"]), "detects", fails)
    (tmp_path / "t.csv").write_text("token,layer,experts\n0,0,1\n")
    assert detect(tmp_path / "t.csv") is IMPORTERS["csv"]
