"""Damaged files: every reader answers with a MoesimError or with something valid, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.traces.mutations import damaged_bytes, damaged_fields
from tests.traces.random_traces import random_trace
from traces.base.errors import MoesimError
from traces.interop import IMPORTERS, detect, open_source
from traces.interop.hints import Hints
from traces.load_table import LoadTable
from traces.load_table_file import read_load_table, write_load_table
from traces.routing import RoutingTrace
from traces.trace_file import TraceFile, read_trace
from traces.trace_writer import write_trace

MUTATIONS = 2_000

Read = Callable[[Path], Any]


def convert(name: str) -> Read:
    def read(path: Path) -> RoutingTrace:
        return IMPORTERS[name].open(path, Hints(model="m", experts=8)).read()

    return read


def write_native(path: Path) -> None:
    write_trace(random_trace(candidates=4, steps=True, ranks=True, categories=("a", "b")), path)


def write_plain(path: Path) -> None:
    """Without metadata, compression and checksums, so that damage reaches the decoded values."""
    write_native(path)
    pq.write_table(
        pq.read_table(path).replace_schema_metadata(None), path, compression="none", store_schema=False
    )


def write_loads(path: Path) -> None:
    loads = np.arange(16, dtype=np.int64).reshape(2, 2, 4)
    write_load_table(LoadTable("m", 4, (3, 5), loads, "o", "l"), path)


def write_npz(path: Path) -> None:
    trace = random_trace()
    np.savez_compressed(
        path,
        topk_ids=trace.ids_TLK,
        topk_weights=np.asarray(trace.weights_TLK),
        request_offsets=trace.request_offsets,
        position=trace.position_T,
        category=np.array(["a", "b", "a"]),
    )


def write_npz_stored(path: Path) -> None:
    """Without compression."""
    np.savez(path, routed_experts=random_trace().ids_TLK)


READERS: dict[str, tuple[str, Callable[[Path], None], Read]] = {
    "trace": ("t.parquet", write_native, read_trace),
    "foreign trace": ("t.parquet", write_plain, convert("parquet")),
    "load table, JSON": ("t.json", write_loads, read_load_table),
    "load table, Parquet": ("t.parquet", write_loads, read_load_table),
    "npz": ("t.npz", write_npz, convert("npz")),
    "npz-requests": ("t.npz", write_npz_stored, convert("npz-requests")),
}


def outcome(read: Read, path: Path) -> str:
    """ "read" or "refused"; any other exception passes through and fails the test."""
    try:
        read(path).validate(file=path)
    except MoesimError as error:
        return "refused" if "\n" not in str(error) else "refused in more than one line"
    return "read"


def assert_mostly_refused(outcomes: Counter[str]) -> None:
    assert outcomes.keys() <= {"read", "refused"}
    assert outcomes["refused"] > MUTATIONS // 2


@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes(tmp_path: Path, name: str) -> None:
    file, write, read = READERS[name]
    path = tmp_path / file
    write(path)
    assert outcome(read, path) == "read"
    outcomes: Counter[str] = Counter()
    for content in damaged_bytes(path.read_bytes(), MUTATIONS):
        path.write_bytes(content)
        outcomes[outcome(read, path)] += 1
        detect(path)
    assert_mostly_refused(outcomes)


def test_damaged_metadata_of_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_native(path)
    table = pq.read_table(path)
    outcomes: Counter[str] = Counter()
    for meta in damaged_fields(json.loads(table.schema.metadata[b"moesim"]), MUTATIONS):
        pq.write_table(table.replace_schema_metadata({b"moesim": json.dumps(meta)}), path)
        outcomes[outcome(read_trace, path)] += 1
    assert_mostly_refused(outcomes)


@pytest.mark.parametrize("form", ["native", "logical_count", "windows"])
def test_damaged_fields_of_a_load_table(tmp_path: Path, form: str) -> None:
    path = tmp_path / "t.json"
    write_loads(path)
    content = json.loads(path.read_text())
    if form == "logical_count":
        content = {"logical_count": content["load"][0]}
    if form == "windows":
        content = {"logical_count": content["load"]}
    outcomes: Counter[str] = Counter()
    for fields in damaged_fields(content, MUTATIONS):
        path.write_text(json.dumps(fields))
        outcomes[outcome(read_load_table, path)] += 1
    assert_mostly_refused(outcomes)


def test_damaged_arrays_in_npz(tmp_path: Path) -> None:
    """Whole arrays replaced by others of any shape and dtype."""
    rng = np.random.default_rng(0)
    path = tmp_path / "t.npz"
    write_npz(path)
    with np.load(path) as npz:
        arrays = dict(npz)
    dtypes = ("u1", "i1", "i8", "u8", "f2", "f8", "U3", "S3", "?", "c8", "M8[s]")
    outcomes: Counter[str] = Counter()
    for _ in range(MUTATIONS):
        changed = dict(arrays)
        name = str(rng.choice(list(changed)))
        if rng.random() < 0.1:
            del changed[name]
        elif rng.random() < 0.3:
            values = changed[name].copy()
            if values.dtype.kind in "iuf":
                values.flat[rng.integers(values.size)] = rng.choice([0, 7, 8, 200])
            changed[name] = values
        else:
            shape = tuple(rng.integers(0, 5, rng.integers(0, 4)))
            changed[name] = np.zeros(shape, str(rng.choice(dtypes)))
        np.savez(path, **changed)
        outcomes[outcome(convert("npz"), path)] += 1
    assert_mostly_refused(outcomes)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", topk_ids=np.array([print, None], object), request_offsets=np.array([0, 2]))
    with pytest.raises(MoesimError, match="topk_ids: must be whole numbers with 3 axes"):
        convert("npz")(tmp_path / "t.npz")


def test_columns_of_any_type(tmp_path: Path) -> None:
    """A foreign Parquet file whose columns have our names and nothing else of ours."""
    rng = np.random.default_rng(0)
    kinds = [
        pa.int8(),
        pa.uint64(),
        pa.float16(),
        pa.string(),
        pa.bool_(),
        pa.binary(),
        pa.date32(),
        pa.null(),
    ]
    kinds += [pa.list_(kind) for kind in kinds] + [
        pa.struct([("a", pa.int8())]),
        pa.map_(pa.int8(), pa.int8()),
    ]
    path = tmp_path / "t.parquet"
    names = ("request", "position", "experts_0", "weights_0", "category")
    for _ in range(200):
        columns = {name: pa.nulls(3, kinds[rng.integers(len(kinds))]) for name in names}
        pq.write_table(pa.table(columns), path)
        assert outcome(convert("parquet"), path) == "refused"


@pytest.mark.parametrize("name", READERS)
def test_what_opens_by_itself(tmp_path: Path, name: str) -> None:
    file, write, _ = READERS[name]
    write(tmp_path / file)
    if name.startswith(("npz", "foreign")):
        with pytest.raises(MoesimError, match="does not tell the number of experts"):
            open_source(tmp_path / file)
        return
    opened = open_source(tmp_path / file)
    if isinstance(opened, TraceFile):
        opened.close()
    assert isinstance(opened, TraceFile if name == "trace" else LoadTable)
