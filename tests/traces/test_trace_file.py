"""Traces on disk: identity, equal bytes, reading parts, other tools' files, refused files."""

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

import traces.trace_writer
from tests.traces.random_traces import any_trace, random_trace, same
from traces.base.errors import MoesimError, OutputError, TraceError
from traces.base.parquet import indices_of
from traces.meta import TraceMeta
from traces.routing import RoutingTrace
from traces.trace_columns import Columns
from traces.trace_file import TraceFile, read_trace
from traces.trace_writer import trace_writer, write_trace

FULL: dict[str, Any] = {"candidates": 4, "steps": True, "ranks": True, "categories": ("a", "b", "never")}

# The folder is shared by the examples of one test; each overwrites the file of the one before.
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 3 tokens, so that small traces have several."""
    monkeypatch.setattr(traces.trace_writer, "WINDOW_TOKENS", 3)


@one_folder
@given(trace=any_trace(), data=st.data())
def test_write_then_read_is_the_identity(tmp_path: Path, trace: RoutingTrace, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, trace.tokens - 1))
    window = trace.select_tokens(start, data.draw(st.integers(start + 1, trace.tokens)))
    path = tmp_path / "t.parquet"
    write_trace(window, path)
    back = read_trace(path)
    assert same(back, window)
    assert back.digest() == window.digest()


@one_folder
@pytest.mark.usefixtures("small_groups")
@given(trace=any_trace(), data=st.data())
def test_a_part_read_is_the_part(tmp_path: Path, trace: RoutingTrace, data: st.DataObject) -> None:
    path = tmp_path / "t.parquet"
    write_trace(trace, path)
    start = data.draw(st.integers(0, trace.tokens - 1))
    stop = data.draw(st.integers(start + 1, trace.tokens))
    layers = data.draw(st.sets(st.sampled_from(trace.meta.layers), min_size=1))
    rows = [index for index, layer in enumerate(trace.meta.layers) if layer in layers]
    with TraceFile(path) as file:
        part = file.read(slice(start, stop), layers)
        assert file.tokens == trace.tokens
        assert np.array_equal(file.request_offsets, trace.request_offsets)
    assert part.meta == replace(trace.meta, layers=tuple(sorted(layers)))
    for name, array in part.present():
        whole = getattr(trace, name)[start:stop]
        assert np.array_equal(array, whole[:, rows] if array.ndim == 3 else whole)


def test_requests_read_alone(tmp_path: Path) -> None:
    trace = random_trace(lengths=(4, 1, 3, 2))
    write_trace(trace, tmp_path / "t.parquet")
    with TraceFile(tmp_path / "t.parquet") as file:
        assert file.requests == 4
        assert same(file.read_requests(1, 3), trace.select_requests(1, 3))
        with pytest.raises(TraceError, match="requests: must be a range within 0:4 \\(got '3:5'\\)"):
            file.read_requests(3, 5)


@pytest.mark.usefixtures("small_groups")
def test_equal_content_gives_equal_bytes_however_it_was_cut(tmp_path: Path) -> None:
    trace = random_trace(lengths=(4, 1, 3, 9), **FULL)
    write_trace(trace, tmp_path / "whole.parquet")
    for size in (1, 2, 5, 16):
        path = tmp_path / f"{size}.parquet"
        with trace_writer(path, trace.meta, categories=trace.categories) as writer:
            for piece in trace.windows(size):
                writer.append(piece)
        assert path.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "whole.parquet").metadata.num_row_groups == 6


@pytest.mark.usefixtures("small_groups")
def test_a_window_touches_its_row_groups_and_layers_only(tmp_path: Path) -> None:
    """Every other byte of column data is overwritten; the window still reads, and no more than it."""
    trace = random_trace(lengths=(12,))
    path = tmp_path / "t.parquet"
    write_trace(trace, path)
    content = bytearray(path.read_bytes())
    footer = pq.ParquetFile(path).metadata
    for group in range(footer.num_row_groups):
        for index in range(footer.num_columns):
            column = footer.row_group(group).column(index)
            if group == 1 and not column.path_in_schema.endswith("_1.list.element"):
                continue
            start = column.dictionary_page_offset or column.data_page_offset
            content[start : start + column.total_compressed_size] = b"\xee" * column.total_compressed_size
    path.write_bytes(content)
    with TraceFile(path) as file:
        part = file.read(slice(3, 6), layers=[3])
        assert np.array_equal(part.ids_TLK[:, 0], trace.ids_TLK[3:6, 1])
        with pytest.raises(TraceError, match="damaged"):
            file.read(slice(3, 7), layers=[3])
        with pytest.raises(TraceError, match="damaged"):
            file.read(slice(3, 6))


def test_a_token_is_named_by_its_row_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces.trace_writer, "WINDOW_TOKENS", 3)
    monkeypatch.setattr(RoutingTrace, "validate", lambda *_, **__: (-1, -1))
    trace = random_trace(lengths=(12,), experts=32)
    trace.ids_TLK[10, 0, 1] = 40
    write_trace(trace, tmp_path / "t.parquet")
    monkeypatch.undo()
    message = "t.parquet: experts_1, token 10: expert id must be below 32 \\(got 40\\)"
    for tokens in (None, slice(7, 12), slice(10, 11)):
        with TraceFile(tmp_path / "t.parquet") as file, pytest.raises(TraceError, match=message):
            file.read(tokens)


def write_pieces(path: Path, meta: TraceMeta, pieces: list[RoutingTrace]) -> None:
    with trace_writer(path, meta) as writer:
        for piece in pieces:
            writer.append(piece)


def refused_pieces() -> dict[str, list[RoutingTrace]]:
    """By what is wrong: pieces of at most 3 tokens that do not make a trace."""
    trace = random_trace(lengths=(3, 3))
    first, second = trace.windows(3)
    return {
        "position, token 3: positions must ascend": [first, first],
        "must have the metadata and categories": [first, random_trace(experts=9)],
        "must have the same columns": [first, replace(second, weights_TLK=None)],
        "has no tokens": [],
    }


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("message", refused_pieces())
def test_pieces_that_make_no_trace_leave_no_file(tmp_path: Path, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        write_pieces(tmp_path / "t.parquet", random_trace().meta, refused_pieces()[message])
    assert not list(tmp_path.iterdir())


def test_an_invalid_trace_is_not_written(tmp_path: Path) -> None:
    trace = random_trace()
    trace.ids_TLK[3, 1, 0] = 8
    with pytest.raises(TraceError, match="experts_3, token 3"):
        write_trace(trace, tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_trace(random_trace(), tmp_path / "missing" / "t.parquet")
    with pytest.raises(OutputError, match="is a folder"):
        write_trace(random_trace(), tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = traces.trace_writer._open
    monkeypatch.setattr(traces.trace_writer, "_open", lambda _, schema: real(Path("/dev/full"), schema))
    with pytest.raises(OutputError, match="No space left"):
        write_trace(random_trace(), tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


# --- files that other tools wrote -------------------------------------------------------------------


def foreign(trace: RoutingTrace, *, lists: Any) -> pa.Table:
    """``trace`` as pandas or polars hold it: wide integers, lists of any length, plain text."""
    columns: dict[str, Any] = {
        "request": pa.array(trace.request_T, pa.int64()),
        "position": pa.array(trace.position_T, pa.uint32()),
        "note": pa.array(["ignored"] * trace.tokens),
    }
    if trace.category_T is not None:
        columns["category"] = pa.array(category_names(trace), pa.large_string())
    for index, layer in enumerate(trace.meta.layers):
        columns[f"experts_{layer}"] = pa.array(trace.ids_TLK[:, index].tolist(), lists(pa.int64()))
        if trace.weights_TLK is not None:
            columns[f"weights_{layer}"] = pa.array(trace.weights_TLK[:, index].tolist(), lists(pa.float64()))
    return pa.table(columns)


@pytest.mark.parametrize("lists", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_wide_types_are_narrowed(tmp_path: Path, lists: Any) -> None:
    trace = random_trace(categories=("a", "b"))
    pq.write_table(foreign(trace, lists=lists), tmp_path / "t.parquet", row_group_size=3)
    with TraceFile(tmp_path / "t.parquet", trace.meta) as file:
        back = file.read()
        assert file.has_weights
    assert back.weights_TLK is not None
    assert trace.weights_TLK is not None
    assert back.weights_TLK.dtype == np.float32
    assert np.array_equal(back.weights_TLK, trace.weights_TLK.astype(np.float32))
    assert np.array_equal(back.ids_TLK, trace.ids_TLK)
    assert back.ids_TLK.dtype == np.uint8
    assert category_names(back) == category_names(trace)


def category_names(trace: RoutingTrace) -> list[str | None]:
    assert trace.category_T is not None
    return [None if code < 0 else trace.categories[code] for code in trace.category_T]


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


FOREIGN_FAULTS: dict[str, tuple[str, Any, str]] = {
    "wide id": (
        "experts_3",
        [[1, 2]] * 5 + [[1, 300]] + [[1, 2]] * 2,
        "experts_3, row 5: must be between 0 and 255 (got 300)",
    ),
    "negative id": ("experts_3", [[1, -1]] * 8, "experts_3, row 0: must be between 0 and 255 (got -1)"),
    "short list": ("experts_3", [[1, 2]] * 7 + [[1]], "experts_3, row 7: must hold lists of 2 (got 1)"),
    "null list": ("experts_3", [[1, 2]] * 7 + [None], "experts_3, row 7: must not be null"),
    "null id": ("experts_3", [[1, None]] * 8, "experts_3: must not hold nulls (got 'null as number 1')"),
    "text": ("experts_3", [["1", "2"]] * 8, "experts_3: must be numbers (got string)"),
    "no list": ("experts_3", [1] * 8, "experts_3: must be a column of lists (got int64)"),
    "float ids": ("experts_3", [[1.0, 2.0]] * 8, "experts_3: must be whole numbers (got float64)"),
    "whole weights": ("weights_3", [[1, 2]] * 8, "weights_3: must be floats (got int64)"),
    "huge weight": (
        "weights_3",
        [[1e300, 2.0]] * 8,
        "weights_3, token 0: gate weight must be finite and not negative (got inf)",
    ),
    "float request": ("request", [0.0] * 8, "request: must be whole numbers (got float64)"),
    "huge position": (
        "position",
        [2**40] * 8,
        "position, row 0: must be between -2147483648 and 2147483647 (got 1099511627776)",
    ),
    "null request": ("request", [None] + [0] * 7, "request: must not hold nulls (got 'null as number 0')"),
    "numbered category": ("category", [1] * 8, "category: must be text (got int64)"),
}


@pytest.mark.parametrize("fault", FOREIGN_FAULTS)
def test_a_fault_in_a_foreign_file_is_named(tmp_path: Path, fault: str) -> None:
    column, values, message = FOREIGN_FAULTS[fault]
    trace = random_trace(categories=("a", "b"))
    table = replaced(foreign(trace, lists=pa.list_), column, pa.array(values))
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    with TraceFile(path, trace.meta) as file, pytest.raises(TraceError) as caught:
        file.read()
    assert str(caught.value) == f"{path}: {message}"


def test_an_unknown_category_is_refused(tmp_path: Path) -> None:
    trace = random_trace(categories=("a", "b"))
    write_trace(trace, tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    pq.write_table(replaced(table, "category", pa.array(["c"] * 8)), tmp_path / "u.parquet")
    with pytest.raises(TraceError, match=r"category: is not among the categories \(got 'c'\)"):
        read_trace(tmp_path / "u.parquet")


# --- files that are no trace ------------------------------------------------------------------------


def test_a_category_beyond_its_names_is_refused() -> None:
    """As Arrow decodes a damaged file."""
    indices = pa.array([0, 1], pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["code"]), safe=False)
    batch = pa.RecordBatch.from_arrays([column], ["category"])
    meta = random_trace(layers=(1,), lengths=(2,)).meta
    with pytest.raises(TraceError, match="points beyond the values of its column"):
        Columns(batch, meta, Path("damaged.parquet")).category_codes(("code",))
    sound = pa.DictionaryArray.from_arrays(pa.array([0, None], pa.int32()), pa.array(["code"]))
    assert indices_of(sound).tolist() == [0, -1]


def with_meta(tmp_path: Path, **change: Any) -> Path:
    """A valid file, then its metadata changed; a value of None removes the key."""
    write_trace(random_trace(), tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    meta = json.loads(table.schema.metadata[b"moesim"]) | change
    kept = {key: value for key, value in meta.items() if value is not None}
    path = tmp_path / "u.parquet"
    pq.write_table(table.replace_schema_metadata({b"moesim": json.dumps(kept)}), path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "moesim.trace/2"}, "needs a newer moesim"),
        ({"format": "moesim.timeline/1"}, "is not a moesim trace"),
        ({"format": None}, "is not a moesim trace"),
        ({"experts": None}, "the metadata lacks experts"),
        ({"experts": "8"}, "experts: must be a whole number"),
        ({"top_k": 3}, r"experts_1: must hold lists of 3 \(got 2\)"),
        ({"layers": [1, 2]}, "lacks column experts_2"),
        ({"layers": 5}, "layers: must name at least one layer"),
        ({"candidates": 4}, "lacks column candidates_1"),
        ({"categories": "ab"}, "categories: must be a list of texts"),
        ({"categories": ["a", "a"]}, "categories: must not repeat a name"),
    ],
)
def test_metadata_that_lies_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = with_meta(tmp_path, **change)
    with pytest.raises(TraceError, match=message):
        read_trace(path)


def test_stored_ids_may_be_narrower_than_the_model_needs(tmp_path: Path) -> None:
    back = read_trace(with_meta(tmp_path, experts=300))
    assert back.ids_TLK.dtype == np.uint16
    assert np.array_equal(back.ids_TLK, random_trace().ids_TLK)


def test_keys_of_later_minor_versions_are_ignored(tmp_path: Path) -> None:
    assert read_trace(with_meta(tmp_path, temperature=0.7)).tokens == 8


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    messages = {
        "empty": "is empty",
        "text": "damaged or not a Parquet file",
        "pipe": r"is not a regular file \(named pipe\)",
        "missing": "there is no such file",
        "other": "is not a routing trace: its schema lacks the metadata key moesim",
        ".": "is a folder",
    }
    for name, message in messages.items():
        with pytest.raises(TraceError, match=message):
            read_trace(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_trace(random_trace(), path)
    path.chmod(0)
    with pytest.raises(TraceError, match="Permission denied"):
        read_trace(path)


@pytest.mark.parametrize(
    ("tokens", "layers", "message"),
    [
        (slice(0, 9), None, "tokens: must be a range within 0:8 \\(got '0:9'\\)"),
        (slice(4, 4), None, "tokens: must be a range"),
        (slice(-2, None), None, "tokens: must be a range"),
        (slice(0, 4, 2), None, "tokens: must be a range"),
        (None, [2], "layers: has MoE layers 1, 3 only \\(got 2\\)"),
        (None, [], "layers: must name at least one layer"),
    ],
)
def test_a_part_that_is_not_there(tmp_path: Path, tokens: Any, layers: Any, message: str) -> None:
    write_trace(random_trace(), tmp_path / "t.parquet")
    with TraceFile(tmp_path / "t.parquet") as file, pytest.raises(MoesimError, match=message):
        file.read(tokens, layers)
