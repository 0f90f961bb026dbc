"""Load tables: identity through both forms, SGLang's JSON, and each rule broken once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from traces.base.errors import LoadTableError, OutputError, TraceError
from traces.interop import load_any, open_source
from traces.load_table import LoadTable
from traces.load_table_file import is_load_table, read_load_table, write_load_table

FIELDS = ("model", "experts", "layers", "origin", "licence", "hidden_layers")


def small() -> LoadTable:
    """2 windows, layers 3 and 5, 4 experts."""
    return LoadTable("tiny", 4, (3, 5), np.arange(16, dtype=np.int64).reshape(2, 2, 4), "a test", "CC0-1.0")


@st.composite
def any_table(draw: st.DrawFn) -> LoadTable:
    layers = tuple(sorted(draw(st.sets(st.integers(0, 99), min_size=1, max_size=3))))
    shape = (draw(st.integers(1, 3)), len(layers), draw(st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    load_WLE: Any = rng.integers(0, draw(st.sampled_from([2, 1000, 2**40])), shape)
    load_WLE[0, :, 0] += 1  # no layer without load
    if draw(st.booleans()):  # averages, of which at least one is not whole
        load_WLE = load_WLE + 0.5
    model = draw(st.text(st.characters(codec="utf-8"), max_size=5))
    hidden_layers = draw(st.none() | st.integers(layers[-1] + 1, 200))
    return LoadTable(model, shape[2], layers, load_WLE, hidden_layers=hidden_layers)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["t.json", "t.parquet"])
@given(table=any_table())
def test_write_then_read_is_the_identity(tmp_path: Path, name: str, table: LoadTable) -> None:
    path = tmp_path / name
    write_load_table(table, path)
    content = path.read_bytes()
    back = read_load_table(path)
    assert np.array_equal(back.load_WLE, table.load_WLE)
    assert back.load_WLE.dtype == table.load_WLE.dtype
    assert [getattr(back, field) for field in FIELDS] == [getattr(table, field) for field in FIELDS]
    write_load_table(back, path)
    assert path.read_bytes() == content


def test_the_json_form_is_readable(tmp_path: Path) -> None:
    write_load_table(small(), tmp_path / "t.json")
    assert (tmp_path / "t.json").read_text() == (
        '{"format": "moesim.load_table/1",\n "model": "tiny",\n "experts": 4,\n "layers": [3, 5],\n'
        ' "origin": "a test",\n "licence": "CC0-1.0",\n "load": [[\n  [0,1,2,3],\n  [4,5,6,7]], [\n'
        "  [8,9,10,11],\n  [12,13,14,15]]]}\n"
    )


def test_totals() -> None:
    assert small().windows == 2
    assert small().load_LE.tolist() == [[8, 10, 12, 14], [16, 18, 20, 22]]


def test_logical_count_keeps_the_true_layers(tmp_path: Path) -> None:
    path = tmp_path / "sglang.json"
    path.write_text(json.dumps({"logical_count": [[0, 0, 0], [1, 0, 2], [0, 0, 0], [3, 4, 0]]}))
    table = read_load_table(path)
    assert (table.experts, table.layers, table.windows) == (3, (1, 3), 1)
    assert table.load_LE.tolist() == [[1, 0, 2], [3, 4, 0]]
    path.write_text(json.dumps({"logical_count": [[[0, 0], [1, 2]], [[0, 0], [0, 0]]]}))
    windows = read_load_table(path)
    assert (windows.layers, windows.load_WLE.tolist()) == ((1,), [[[1, 2]], [[0, 0]]])


def test_counts_may_be_written_as_floats_and_averages_are_loads(tmp_path: Path) -> None:
    path = tmp_path / "sglang.json"
    path.write_text(json.dumps({"logical_count": [[0.0, 0.0], [3.0, 1e3]]}))
    whole = read_load_table(path)
    assert (str(whole.load_WLE.dtype), whole.load_WLE.tolist()) == ("int64", [[[3, 1000]]])
    path.write_text(json.dumps({"logical_count": [[0.5, 0], [3, 7]]}))
    average = read_load_table(path)
    assert (str(average.load_WLE.dtype), average.load_LE.tolist()) == ("float64", [[0.5, 0.0], [3.0, 7.0]])
    assert average.hidden_layers == 2


def test_a_load_table_is_recognised_and_is_no_trace(tmp_path: Path) -> None:
    for name in ("t.json", "t.parquet"):
        write_load_table(small(), tmp_path / name)
        assert is_load_table(tmp_path / name)
        assert isinstance(open_source(tmp_path / name), LoadTable)
        with pytest.raises(TraceError, match="is a load table, counts without tokens"):
            load_any(tmp_path / name)
    assert not is_load_table(tmp_path)
    assert not is_load_table(tmp_path / "missing")


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "negative": (
        {"load_WLE": small().load_WLE - 13},
        "load, window 0, layer 3, expert 0: must not be negative (got -13)",
    ),
    "idle layer": ({"load_WLE": small().load_WLE * [[[1], [0]]]}, "load, layer 5: has no load in any window"),
    "too large": (
        {"load_WLE": small().load_WLE << 50},
        "load, layer 3: must sum to at most 2^53 (got 49539595901075456)",
    ),
    "shape": ({"layers": (3,)}, "load: must have shape [at least 1, 1, 4] (got (2, 2, 4))"),
    "no window": (
        {"load_WLE": small().load_WLE[:0]},
        "load: must have shape [at least 1, 2, 4] (got (0, 2, 4))",
    ),
    "dtype": (
        {"load_WLE": small().load_WLE.astype(np.float32)},
        "load: must be int64 or float64 (got float32)",
    ),
    "endless": (
        {"load_WLE": small().load_WLE + np.inf},
        "load, window 0, layer 3, expert 0: must be finite (got inf)",
    ),
    "hidden layers": (
        {"hidden_layers": 5},
        "hidden_layers: must be between 6 and 2147483648 (got 5)",
    ),
    "layers": ({"layers": (5, 3)}, "layers: must ascend, each layer once (got (5, 3))"),
    "experts": ({"experts": 0}, "experts: must be between 1 and 65536 (got 0)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_rule_is_named_and_not_written(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    with pytest.raises(LoadTableError) as caught:
        write_load_table(replace(small(), **change), tmp_path / "t.json")
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{", "1: is not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "format: is not a moesim load_table"),
        ('{"format": "moesim.load_table/2"}', "format: needs a newer moesim"),
        ('{"format": "moesim.trace/1"}', "format: is not a moesim load_table"),
        ('{"format": "moesim.load_table/1"}', "load: is missing"),
        ('{"format": "moesim.load_table/1", "load": [[[1]]]}', "model: is missing"),
        ('{"logical_count": []}', r"must be lists \[layers\]\[experts\]"),
        ('{"logical_count": [[0, 0]]}', "has no load in any layer"),
        (
            '{"logical_count": [[1, 2], [3]]}',
            "window 0, row 1: every window must have 2 layers, and every layer 2",
        ),
        ('{"logical_count": [[1, "1"]]}', r"row 0, expert 1: must be a number below 2\^63 \(got '1'\)"),
        ('{"logical_count": [[1, -0.5]]}', r"layer 0, expert 1: must not be negative \(got -0.5\)"),
        ('{"logical_count": [[1, true]]}', "must be a number"),
        ('{"logical_count": [[1, NaN]]}', "is not a JSON number"),
        ('{"logical_count": [[1, 1e999]]}', "must be a number"),
        ('{"logical_count": [[9223372036854775808]]}', "must be a number"),
        ('{"logical_count": [[' + "9" * 5000 + "]]}", "a number is too long"),
        ('{"logical_count": ' + "[" * 100_000, "nested too deeply"),
        ('{"logical_count": [[1]], "logical_count": [[1]]}', "the key stands twice"),
        ("\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_json_that_is_no_load_table(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadTableError, match=message) as caught:
        read_load_table(path)
    assert str(caught.value).startswith(f"{path}:")


def rows(**change: Any) -> pa.Table:
    columns: dict[str, Any] = {"window": [0, 0, 1, 1], "layer": [3, 5, 3, 5], "load": [[1, 2, 3, 4]] * 4}
    meta = {
        "format": "moesim.load_table/1",
        "model": "",
        "experts": 4,
        "layers": [3, 5],
        "origin": "",
        "licence": "",
    }
    metadata = {b"moesim": json.dumps(meta).encode()}
    return pa.table({**columns, **change}).replace_schema_metadata(metadata)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (rows(window=[0, 0, 2, 2]), "window: rows must be ordered by window, from 0, then layer"),
        (rows(layer=[3, 5, 5, 3]), "layer: rows must be ordered"),
        (rows(load=[[1, 2, 3]] * 4), "load, row 0: must hold lists of 4"),
        (rows(load=[[1, 2, 3, -4]] * 4), "load, window 0, layer 3, expert 3: must not be negative"),
        (rows(load=[[0.5, 1, 2, float("inf")]] * 4), "load, window 0, layer 3, expert 3: must be finite"),
        (rows(load=[[True] * 4] * 4), "load: must be numbers"),
        (rows(load=[None] * 4), "load, row 0|load: must be a column of lists"),
        (rows().slice(0, 3), r"must hold a row for each window and each of 2 layers \(got '3 rows'\)"),
        (rows().slice(0, 0), "must hold a row for each window"),
        (rows().drop_columns("layer"), "lacks column layer"),
        (rows().replace_schema_metadata(None), "is not a moesim load_table"),
    ],
)
def test_parquet_that_is_no_load_table(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(LoadTableError, match=message):
        read_load_table(tmp_path / "t.parquet")


def test_narrow_counts_are_widened(tmp_path: Path) -> None:
    pq.write_table(rows(load=pa.array([[1, 2, 3, 4]] * 4, pa.list_(pa.int32()))), tmp_path / "t.parquet")
    assert read_load_table(tmp_path / "t.parquet").load_LE.tolist() == [[2, 4, 6, 8]] * 2


def test_places_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        ".": "is a folder",
        "pipe": r"is not a regular file \(named pipe\)",
        "missing": "there is no such file",
    }.items():
        with pytest.raises(LoadTableError, match=message):
            read_load_table(tmp_path / name)
    with pytest.raises(OutputError):
        write_load_table(small(), tmp_path / "missing" / "t.json")


def test_json_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traces.load_table_file.MAX_JSON_BYTES", 50)
    with pytest.raises(LoadTableError, match=r"name a \.parquet file"):
        write_load_table(small(), tmp_path / "t.json")
    write_load_table(small(), tmp_path / "t.parquet")
    monkeypatch.undo()
    write_load_table(small(), tmp_path / "t.json")
    monkeypatch.setattr("traces.base.input_file.MAX_JSON_BYTES", 50)
    with pytest.raises(LoadTableError, match="is larger than 50 bytes, too large for a load table"):
        read_load_table(tmp_path / "t.json")
