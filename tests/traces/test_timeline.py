"""Timelines and work tables: strict rules, round trips, and files that are not what they claim."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from tests.traces.example_timelines import timeline_of, timelines
from traces.base.errors import MoesimError, TimelineError
from traces.timeline import (
    HOPS,
    PHASES,
    STREAMS,
    Timeline,
    WorkTable,
    read_timeline,
    read_work,
    write_timeline,
    write_work,
)


def two_spans() -> Timeline:
    return timeline_of([(0, 0, 0, 3, 1, 0, 3, 0.0, 1.5, 10, 5, 0), (0, 0, 0, 3, 1, 0, 8, 1.5, 2.0, 0, 0, 0)])


def three_rows() -> WorkTable:
    return WorkTable(
        step_N=np.array([0, 0, 1], np.int32),
        layer_N=np.array([3, 3, 3], np.int32),
        phase_N=np.array([3, 2, 5], np.int8),
        hop_N=np.array([0, 1, 0], np.int8),
        source_N=np.array([-1, 0, 1], np.int32),
        destination_N=np.array([7, 1, 0], np.int32),
        count_N=np.array([12, 4, 4], np.int64),
        bytes_N=np.array([0, 4096, 8192], np.int64),
    )


def changed(table: Any, **columns: Any) -> Any:
    """The table with some columns replaced; a value keeps its column's dtype, an array its own."""
    arrays = {
        name: value if isinstance(value, np.ndarray) else np.array(value, getattr(table, name).dtype)
        for name, value in columns.items()
    }
    return dataclasses.replace(table, **arrays)


def equal(one: Any, other: Any) -> bool:
    same = True
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        same &= a == b if isinstance(a, str) else bool(a.dtype == b.dtype and (a == b).all())
    return same


@given(timelines())
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, timeline: Timeline) -> None:
    path = tmp_path_factory.mktemp("t") / "timeline.parquet"
    write_timeline(timeline, path)
    assert equal(read_timeline(path), timeline)


def test_work_is_read_back(tmp_path: Path) -> None:
    write_work(three_rows(), tmp_path / "work.parquet")
    assert equal(read_work(tmp_path / "work.parquet"), three_rows())


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_timeline(two_spans(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_shows_names_not_codes(tmp_path: Path) -> None:
    write_timeline(two_spans(), tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet").to_pydict()
    assert list(table) == [
        *("run", "repeat", "step", "micro_batch", "layer", "rank", "stream", "phase"),
        *("start_s", "end_s", "assignments", "unique_tokens", "bytes"),
    ]
    assert table["phase"] == ["experts", "wait"]
    assert table["stream"] == ["compute", "compute"]
    assert table["run"] == ["r", "r"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"end_s_N": [1.5, np.nan]}, "end_s, row 1: must be finite (got nan)"),
        ({"end_s_N": [1.5, 1.25]}, "end_s, row 1: must not be before its start 1.5 (got 1.25)"),
        ({"phase_N": [3, 9]}, "phase, row 1: must be a code below 9 (got 9)"),
        ({"stream_N": [-1, 0]}, "stream, row 0: must be a code below 2 (got -1)"),
        ({"rank_N": [1, -1]}, "rank, row 1: must be at least 0 (got -1)"),
        ({"layer_N": [-2, 3]}, "layer, row 0: must be at least -1 (got -2)"),
        ({"bytes_N": [0, -5]}, "bytes, row 1: must be at least 0 (got -5)"),
        ({"step_N": np.zeros(2, np.int64)}, "step: must be int32 (got int64)"),
        ({"step_N": np.zeros(3, np.int32)}, "step: must have 2 rows (got (3,))"),
        (
            {"start_s_N": [0.0, 1.25]},
            "start_s, row 1: rank 1's compute stream is busy until 1.5 with row 0; spans of a lane must "
            "follow each other (got 1.25)",
        ),
    ],
)
def test_a_broken_timeline_is_refused_and_not_written(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(TimelineError) as error:
        write_timeline(changed(two_spans(), **columns), tmp_path / "t.parquet")
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_spans_may_overlap_in_different_lanes() -> None:
    for column in ("stream_N", "rank_N", "repeat_N"):
        changed(two_spans(), start_s_N=[0.0, 1.0], **{column: [0, 1]}).validate()


def test_spans_of_a_lane_must_stand_in_order_of_time() -> None:
    with pytest.raises(TimelineError, match="follow each other"):
        two_spans().select(np.array([1, 0])).validate()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"source_N": [0, 0, 1]}, "source, row 0: must be -1 in rows of experts (got 0)"),
        ({"source_N": [-1, 0, -1]}, "source, row 2: must name the sending GPU (got -1)"),
        ({"hop_N": [0, 2, 0]}, "hop, row 1: must be a code below 2 (got 2)"),
        ({"count_N": [1, 1, -1]}, "count, row 2: must be at least 0 (got -1)"),
    ],
)
def test_broken_work_is_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(TimelineError) as error:
        changed(three_rows(), **columns).validate()
    assert str(error.value) == message


def rewritten(path: Path, change: Any) -> Path:
    """A valid timeline file whose Arrow table went through ``change``."""
    write_timeline(two_spans(), path)
    pq.write_table(change(pq.read_table(path)), path)
    return path


def with_column(name: str, values: Any) -> Any:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, values)


def with_header(**header: Any) -> Any:
    return lambda table: table.replace_schema_metadata({"moesim": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns("rank"), "rank: is missing"),
        (with_column("rank", pa.array([1.0, 1.0])), "rank: must be int32 (got double)"),
        (with_column("rank", pa.array([1, None], pa.int32())), "rank: must not hold nulls (got 1)"),
        (with_column("phase", pa.array(["experts", "lunch"])), f"one of {', '.join(PHASES)} (got 'lunch')"),
        (with_column("phase", pa.array([3, 8])), "phase: must be text (got int64)"),
        (lambda table: table.replace_schema_metadata(), "format: is not a moesim timeline"),
        (with_header(format="moesim.work/1"), "format: is not a moesim timeline"),
        (with_header(format="moesim.timeline/2"), "format: needs a newer moesim"),
        (with_header(format="moesim.timeline/1"), "metadata run: must be text (got None)"),
        (lambda table: table.replace_schema_metadata({"moesim": "{"}), "metadata key moesim is not JSON"),
    ],
)
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    path = rewritten(tmp_path / "t.parquet", change)
    with pytest.raises(TimelineError) as error:
        read_timeline(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_text_columns_without_dictionary_are_read(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "t.parquet", with_column("phase", pa.array(["experts", "wait"])))
    assert equal(read_timeline(path), two_spans())


def test_row_groups_with_dictionaries_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_timeline(two_spans(), path)
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table.slice(1, 1))
        writer.write_table(table.slice(0, 1).set_column(9, "end_s", pa.array([0.5])))
    with pytest.raises(TimelineError, match="follow each other"):
        read_timeline(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table.slice(0, 1))
        writer.write_table(table.slice(1, 1))
    assert equal(read_timeline(path), two_spans())


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    for name, message in {
        ".": "is a folder, a Parquet file was expected",
        "absent": "there is no such file",
        "empty": "is empty",
        "text": "is damaged or not a Parquet file",
    }.items():
        with pytest.raises(TimelineError, match=message):
            read_timeline(tmp_path / name)


def test_a_mutated_file_gives_a_timeline_or_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_timeline(two_spans(), path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        raw = bytearray(whole)
        if rng.random() < 0.2:
            raw = raw[: rng.integers(len(raw))]
        for _ in range(rng.integers(1, 4)):
            if raw:
                raw[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(raw)
        try:
            read_timeline(path)
        except MoesimError as error:
            assert str(error).startswith(str(path))  # noqa: PT017 - either outcome is right
            refused += 1
    assert refused > 1000


def test_names_are_distinct() -> None:
    for names in (PHASES, STREAMS, HOPS):
        assert len(set(names)) == len(names)
