"""Responses of vLLM and SGLang: base64 with and without a header, in JSON, JSON lines and alone."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traces.interop.responses as module
from tests.traces.random_traces import random_trace, same
from traces.base.errors import TraceError
from traces.interop import IMPORTERS, detect, load_any
from traces.interop.hints import Hints

KNOWN = Hints(
    model="tiny", experts=8, top_k=2, layers=(1, 3), hidden_layers=5, origin="a test", licence="CC0-1.0"
)
TRACE = random_trace(weights=None)
TRACE = replace(TRACE, meta=replace(TRACE.meta, hidden_layers=5))  # as KNOWN says


def hidden(request: int) -> np.ndarray[Any, Any]:
    """A request of TRACE with rows for 5 hidden layers, of which 1 and 3 are MoE layers."""
    ids_TLK = TRACE.select_requests(request, request + 1).ids_TLK
    hidden_TLK = np.zeros((len(ids_TLK), 5, 2), np.int32)
    hidden_TLK[:, [1, 3]] = ids_TLK
    return hidden_TLK


def raw(request: int) -> str:
    """SGLang: int32 without a header."""
    return base64.b64encode(hidden(request).astype("<i4").tobytes()).decode()


def npy(request: int, dtype: str = "u1") -> str:
    """vLLM: an .npy file."""
    stream = io.BytesIO()
    np.save(stream, hidden(request).astype(dtype))
    return base64.b64encode(stream.getvalue()).decode()


def sglang(request: int) -> dict[str, Any]:
    return {"text": "…", "meta_info": {"id": "x", "routed_experts": raw(request)}}


def vllm(request: int) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "text": "…", "routed_experts": npy(request)}]}


@pytest.mark.parametrize("response", [sglang, vllm])
def test_json_lines(tmp_path: Path, response: Any) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text("\n".join(json.dumps(response(request)) for request in range(3)) + "\n\n")
    assert detect(path) is IMPORTERS["routed-experts"]
    assert same(load_any(path, KNOWN), TRACE)


def test_one_response_on_many_lines_with_a_request_in_each_choice(tmp_path: Path) -> None:
    path = tmp_path / "response.json"
    choices = [{"routed_experts": npy(request, "<u2")} for request in range(3)]
    path.write_text(json.dumps({"choices": choices}, indent=2))
    assert same(load_any(path, KNOWN), TRACE)


def test_sglang_openai_responses(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    lines = [{"choices": [{"text": "…"}], "sglext": {"routed_experts": raw(r)}} for r in range(3)]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert same(load_any(path, KNOWN), TRACE)


def lists(request: int) -> list[Any]:
    return list(hidden(request).tolist())


def shaped(request: int, start: int = 0) -> dict[str, Any]:
    """Dynamo: raw bytes beside their shape."""
    data = base64.b64encode(hidden(request).astype("<u2").tobytes()).decode()
    return {"data": data, "shape": list(hidden(request).shape), "dtype": "uint16", "start": start}


@pytest.mark.parametrize("value", [raw, npy, lists, shaped])
@pytest.mark.parametrize(
    "response",
    [
        lambda value: {"choices": [{"index": 0, "sgl_ext": {"routed_experts": value}}]},
        lambda value: [{"text": "…", "meta_info": {"routed_experts": value}}],
        lambda value: {"custom_id": "a", "response": {"body": {"choices": [{"routed_experts": value}]}}},
    ],
    ids=["in the choice", "a list", "a batch"],
)
def test_wherever_and_however_the_experts_stand(tmp_path: Path, value: Any, response: Any) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text("\n".join(json.dumps(response(value(request))) for request in range(3)))
    assert detect(path) is IMPORTERS["routed-experts"]
    assert same(load_any(path, KNOWN), TRACE)


def test_a_list_of_responses_on_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "responses.json"
    path.write_text(json.dumps([sglang(request) for request in range(3)], indent=1))
    assert detect(path) is IMPORTERS["routed-experts"]
    assert same(load_any(path, KNOWN), TRACE)


@pytest.mark.parametrize("value", [raw, npy, lists, shaped])
def test_the_prompt_comes_first_and_counts_once(tmp_path: Path, value: Any) -> None:
    """Its four tokens, then each choice goes on where they end."""
    path = tmp_path / "response.json"
    choices = [{"routed_experts": value(1)}, {"routed_experts": value(2)}]
    path.write_text(json.dumps({"prompt_routed_experts": value(0), "choices": choices}))
    found = load_any(path, KNOWN)
    assert np.array_equal(found.ids_TLK, TRACE.ids_TLK)
    assert found.request_T.tolist() == [0] * 5 + [1] * 3
    assert found.position_T.tolist() == [0, 1, 2, 3, 4, 4, 5, 6]
    path.write_text(json.dumps({"prompt_routed_experts": value(0), "choices": [{"text": ""}]}))
    assert load_any(path, KNOWN).tokens == 4


def test_rows_begin_where_their_start_says(tmp_path: Path) -> None:
    path = tmp_path / "response.json"
    path.write_text(json.dumps({"choices": [{"routed_experts": shaped(2, start=40)}]}))
    assert load_any(path, KNOWN).position_T.tolist() == [40, 41, 42]


@pytest.mark.parametrize("text", [raw, npy])
def test_the_text_alone(tmp_path: Path, text: Any) -> None:
    path = tmp_path / "routed.txt"
    path.write_text("\n".join(map(text, range(3))))
    assert detect(path) is IMPORTERS["routed-experts"]
    assert same(load_any(path, KNOWN), TRACE)


def test_an_npy_tells_its_shape_and_raw_int32_does_not(tmp_path: Path) -> None:
    path = tmp_path / "routed.txt"
    path.write_text(npy(0))
    assert load_any(path, Hints(experts=8)).meta.layers == (1, 3)
    path.write_text(raw(0))
    with pytest.raises(TraceError, match=r"routed\.txt:1: is raw int32 .*: name the model \(--model\)"):
        load_any(path, Hints(experts=8))


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


FAULTS: dict[str, tuple[str, str]] = {
    "no routed_experts": (
        '{"choices": [{"routed_experts": null}]}',
        "1: lacks routed_experts, which a server sends when it is started with "
        "--enable-return-routed-experts; it has choices",
    ),
    "in the second line": (
        json.dumps(sglang(0)) + '\n{"meta_info": {"routed_experts": 3}}',
        r":2: routed_experts: must be base64 text, lists .* \(got 3\)",
    ),
    "cut JSON": (json.dumps(sglang(0))[:-9], ":1: is not JSON"),
    "cut line": (json.dumps(sglang(0)) + "\n" + json.dumps(sglang(1))[:40], ":2: is not JSON"),
    "no lists of one length": (
        '{"routed_experts": [[[1, 2]], [[1]]]}',
        r":1: routed_experts: must be lists \[tokens\]\[layers\]\[K\], all equally long",
    ),
    "lists of floats": ('{"routed_experts": [[[1.5, 2]]]}', "of whole numbers .*3 axes of float64"),
    "two axes": ('{"routed_experts": [[1, 2]]}', "of whole numbers .*2 axes of int64"),
    "no dtype": ('{"routed_experts": {"data": "", "shape": [1, 5, 2]}}', "lacks dtype; it has data, shape"),
    "shape": (
        '{"routed_experts": {"data": "", "shape": [1, 5], "dtype": "u1"}}',
        r"its shape must be \[tokens",
    ),
    "dtype": (
        '{"routed_experts": {"data": "", "shape": [1, 5, 2], "dtype": "f4"}}',
        "its dtype must be of whole",
    ),
    "no dtype of numpy": (
        '{"routed_experts": {"data": "", "shape": [1, 5, 2], "dtype": "{"}}',
        "its dtype is none of numpy",
    ),
    "too few data": (
        '{"routed_experts": {"data": "AAAA", "shape": [1, 5, 2], "dtype": "u1"}}',
        r"its shape and dtype need 10 bytes of data \(got 3\)",
    ),
    "another prompt": (
        '{"prompt_routed_experts": [[[1, 2]]], "routed_experts": [[[1, 2], [1, 2]]]}',
        r"prompt_routed_experts: must have the layers and K of routed_experts, \(2, 2\)",
    ),
    "not base64": ('{"routed_experts": "?!"}', ":1: is neither JSON nor base64"),
    "not ASCII": ("é" * 40, ":1: is neither JSON nor base64"),
    "half a token": (b64(bytes(42)), r":1: must be int32 .* \(got '42 bytes, 40 for a token'\)"),
    "nothing": ('{"routed_experts": ""}', ":1: must be int32 for 5 layers"),
    "an id beyond E": (b64(np.tile([8, 1], 10).astype("<i4").tobytes()), "layer 1, token 0: expert id"),
    "cut npy": (b64(base64.b64decode(npy(0))[:-1]), ":1: is damaged: shape"),
    "npy header alone": (b64(b"\x93NUMPY\x01"), ":1: is damaged or not an .npy file"),
    "deep": ('{"routed_experts": ' * 9999, ":1: is not JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_responses_are_refused(tmp_path: Path, fault: str) -> None:
    text, message = FAULTS[fault]
    path = tmp_path / "responses.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        IMPORTERS["routed-experts"].open(path, KNOWN).read()


def test_mixed_shapes_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 4, 2), np.uint8))
    path = tmp_path / "routed.txt"
    path.write_text(npy(0) + "\n" + b64(stream.getvalue()))
    with pytest.raises(TraceError, match=r":2: must have 5 layers and 2 experts per token"):
        load_any(path, KNOWN)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_LINE", 100)
    path = tmp_path / "routed.txt"
    path.write_text("A" * 200)
    with pytest.raises(TraceError, match=":1: is longer than 100 bytes"):
        load_any(path, KNOWN)


def test_other_text_is_not_taken_for_responses(tmp_path: Path) -> None:
    for text in ("hello world, this is no trace " * 9, "", "{}", '{"format": "moesim.load_table/1"}'):
        (tmp_path / "t.txt").write_text(text)
        assert detect(tmp_path / "t.txt") is None
