"""CSV and JSON lines with a token's choice in one layer in each row."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.traces.random_traces import any_trace, random_trace, same
from traces.base.errors import TraceError
from traces.interop import IMPORTERS, detect, load_any
from traces.interop.hints import Hints
from traces.routing import RoutingTrace

KNOWN = Hints(model="tiny", experts=8, origin="a test", licence="CC0-1.0")
TRACE = random_trace(weights=np.float32)


def rows(trace: RoutingTrace) -> list[dict[str, Any]]:
    found = []
    for token in range(trace.tokens):
        for index, layer in enumerate(trace.meta.layers):
            row = {
                "request": f"r{trace.request_T[token]}",
                "token": int(trace.position_T[token]),
                "layer": layer,
                "experts": trace.ids_TLK[token, index].tolist(),
            }
            if trace.weights_TLK is not None:
                row["weights"] = trace.weights_TLK[token, index].tolist()
            found.append(row)
    return found


def write_jsonl(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def write_csv(path: Path, found: list[dict[str, Any]], bracketed: bool = False) -> Path:
    def cell(value: Any) -> str:
        if isinstance(value, list):
            return f'"{value}"' if bracketed else " ".join(map(str, value))
        return str(value)

    lines = [",".join(found[0])] + [",".join(map(cell, row.values())) for row in found]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("bracketed", [False, True])
def test_csv(tmp_path: Path, bracketed: bool) -> None:
    path = write_csv(tmp_path / "t.csv", rows(TRACE), bracketed)
    assert detect(path) is IMPORTERS["csv"]
    assert same(load_any(path, KNOWN), TRACE)


def test_json_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", rows(TRACE))
    assert detect(path) is IMPORTERS["jsonl"]
    assert same(load_any(path, KNOWN), TRACE)


def test_rows_layer_by_layer_without_requests_and_weights(tmp_path: Path) -> None:
    """As hooks write them: all tokens of a layer, then the next layer."""
    whole = random_trace(lengths=(6,), weights=None)
    found = sorted(rows(whole), key=lambda row: row["layer"])
    for row in found:
        del row["request"]
    path = write_csv(tmp_path / "t.csv", found)
    assert same(load_any(path, KNOWN), whole)


@given(any_trace(), st.randoms(use_true_random=False))
def test_any_order_of_rows(
    tmp_path_factory: pytest.TempPathFactory, trace: RoutingTrace, order: random.Random
) -> None:
    found = rows(trace)
    # Requests are numbered as they appear: the first row of each stays where it is.
    head = {row["request"]: row for row in reversed(found)}
    rest = [row for row in found if row not in head.values()]
    order.shuffle(rest)
    folder = tmp_path_factory.mktemp("rows")
    mixed = [*(row for row in found if row in head.values()), *rest]
    hints = Hints(experts=trace.meta.experts)
    for path in (write_csv(folder / "t.csv", mixed), write_jsonl(folder / "t.jsonl", mixed)):
        back = load_any(path, hints)
        assert back.meta.layers == trace.meta.layers
        assert np.array_equal(back.ids_TLK, trace.ids_TLK)
        assert np.array_equal(back.request_T, trace.request_T)
        assert np.array_equal(back.position_T, trace.position_T)
        if trace.weights_TLK is not None:
            assert back.weights_TLK is not None
            assert np.array_equal(back.weights_TLK, trace.weights_TLK.astype(np.float32))


def test_other_names_of_the_columns_and_other_rows(tmp_path: Path) -> None:
    """As a logger writes them: a line about the model, which tells E, and one at the end."""
    names = {"request": "req_id", "token": "token_idx", "layer": "layer", "experts": "topk_ids"}
    names["weights"] = "topk_weights"
    found: list[dict[str, Any]] = [{"type": "meta", "model_id": "tiny", "num_experts": 8}]
    found += [{"type": "route", **{names[name]: value for name, value in row.items()}} for row in rows(TRACE)]
    path = write_jsonl(tmp_path / "t.jsonl", [*found, {"type": "end"}])
    assert detect(path) is IMPORTERS["jsonl"]
    back = load_any(path, Hints(origin="a test", licence="CC0-1.0"))
    assert back.meta.origin == "a test; 1 rows left out: they have neither token nor layer nor experts"
    assert same(replace(back, meta=replace(back.meta, origin="a test")), TRACE)
    with pytest.raises(TraceError, match=r"the model has 9 experts \(got 8\)"):
        load_any(path, Hints(experts=9))


def test_where_the_token_is_text_the_order_of_rows_is_the_position(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        'Layer ID,Batch Number,Token,Activated Expert IDs\n1,0,<s>,"[5, 2]"\n1,0,"a,\n",1 7\n'
        '1,7,<s>,"[1, 2]"\n2,0,<s>,"[0, 3]"\n2,0,,"[6, 4]"\n2,7,9,4 5\n'
    )
    back = load_any(path, Hints(experts=8))
    assert (back.meta.layers, back.request_T.tolist(), back.position_T.tolist()) == (
        (1, 2),
        [0, 0, 1],
        [0, 1, 0],
    )
    assert back.ids_TLK.tolist() == [[[5, 2], [0, 3]], [[1, 7], [6, 4]], [[1, 2], [4, 5]]]


def changed(index: int, **change: Any) -> list[dict[str, Any]]:
    found = rows(TRACE)
    found[index] = {**found[index], **change}
    return found


FAULTS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a row is missing": (rows(TRACE)[:-1], r"token 2 of request 2: must have one row for each of 2 layers"),
    "a row comes twice": (
        [*rows(TRACE), rows(TRACE)[0]],
        r"token 0 of request 0: must have one row for each of 2 layers \(got 'layer 1'\)",
    ),
    "K changes": (changed(3, experts=[1, 2, 3]), r"experts, row 3: must hold 2 numbers, as the first row"),
    "no expert": (changed(0, experts=[]), "experts"),
    "an id beyond E": (changed(2, experts=[1, 8]), r"layer 1, token 1: expert id .* below 8 \(got 8\)"),
    "a layer that nobody wrote": (
        changed(2, experts=[1, 1]),
        r"layer 1, token 1: was not written by a",
    ),
    "words": (changed(2, experts=["a", "b"]), r"is not .* that can be read"),
    "weights of another K": (changed(1, weights=[0.5]), r"weights, row 1: must hold 2 numbers"),
    "negative weight": (changed(1, weights=[0.5, -0.5]), r"weights_3, token 0: gate weight must be finite"),
    "negative layer": (changed(0, layer=-1), "layer: must be at least 0"),
    "a word for a layer": (changed(0, layer="x"), r"is not .* that can be read"),
    "huge token": (changed(0, token=2**40), "must have one row|token: must be between 0"),
}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_rows_are_refused(tmp_path: Path, kind: str, fault: str) -> None:
    found, message = FAULTS[fault]
    path = tmp_path / f"t.{kind}"
    (write_csv if kind == "csv" else write_jsonl)(path, found)
    with pytest.raises(TraceError, match=message):
        load_any(path, KNOWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token,layer\n1,2\n", r"lacks column experts \(or expert_ids, .*\); it has token, layer"),
        (
            "layer_id,expert_ids\n3,1 2\n",
            r"lacks column token \(or .*\); it has layer_id, expert_ids",
        ),
        ("token,layer,experts\n0,1,1 2\nx,1,1 2\n1,1,1 2\n", "is not CSV that can be read: Failed to parse"),
        ("\x00,\n", "is not CSV that can be read: its first line names no columns"),
        ("token,layer,experts\n", "has no tokens"),
        ("token,layer,experts\n0,,1 2\n", "layer, row 0: must not be empty"),
        ("token,layer,experts\n0,1\n", "is not CSV that can be read"),
        ("", "is empty"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        IMPORTERS["csv"].open(path, KNOWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"token": 0, "layer": 1, "experts": [1, 2]', "is not JSON lines that can be read"),
        ('{"token": 0, "layer": 1, "experts": [1, null]}', "experts: must not hold nulls"),
        ('{"token": 0, "layer": 1, "experts": 1}', "experts: must be lists of numbers"),
        ('{"token": 0, "layer": 1, "experts": null}', "experts, row 0: must not be empty"),
        ('{"token": 0, "layer": 1.5, "experts": [1, 2]}', "is not JSON lines that can be read"),
        ('{"token": 0, "layer": 1, "experts": [1.5, 2]}', "is not JSON lines that can be read"),
        ('{"token": 0, "layer": [1], "experts": [1, 2]}', "is not JSON lines that can be read"),
        ('{"token": 0, "layer": 1}', r"lacks column experts \(or expert_ids, .*\); it has token, layer"),
        ('{"type": "meta", "num_experts": 8}', r"lacks column token \(or .*\); it has type, num_experts"),
    ],
)
def test_bad_json_lines(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(TraceError, match=message):
        IMPORTERS["jsonl"].open(path, KNOWN)


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", rows(TRACE))
    with pytest.raises(TraceError, match=r"layer: is no MoE layer of tiny \(got 1\)"):
        load_any(path, Hints(model="tiny", experts=8, layers=(2, 3)))
    with pytest.raises(TraceError, match=r"name it \(--experts N; the largest id is 7\)"):
        load_any(path)


def test_a_file_beyond_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "t.csv", rows(TRACE))
    monkeypatch.setattr("traces.base.memory.physical_memory", lambda: 100)
    with pytest.raises(TraceError, match=r"CSV of \d+ bytes needs"):
        load_any(path, KNOWN)
