"""Small files that expand to more than memory holds are refused before they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.traces.random_traces import random_trace
from traces.base.errors import TraceError
from traces.base.memory import usable_memory
from traces.interop import load_any
from traces.interop.hints import Hints
from traces.routing import MAX_CATEGORY_BYTES
from traces.trace_writer import write_trace

HINTS = Hints(experts=8)


def memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("traces.base.memory.physical_memory", lambda: size)


def write_columns(path: Path, experts: pa.Array, **columns: pa.Array) -> None:
    """A foreign trace; equal numbers take next to nothing."""
    count = np.arange(len(experts), dtype=np.int32)
    columns = {"request": pa.array(0 * count), "position": pa.array(count), "experts_0": experts, **columns}
    pq.write_table(pa.table(columns), path, store_schema=False)


def test_arrays_of_an_npz_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.tile(np.array([[[0, 1]]], np.uint8), (50_000, 4, 1))
    np.savez_compressed(tmp_path / "t.npz", topk_ids=ids, request_offsets=[0, len(ids)])
    memory(monkeypatch, 16 * ids.nbytes)
    with pytest.raises(TraceError, match="array topk_ids needs"):
        load_any(tmp_path / "t.npz", HINTS)
    names: dict[str, Any] = {f"experts_{layer}": ids[:, layer] for layer in range(4)}
    np.savez_compressed(tmp_path / "l.npz", **names)
    memory(monkeypatch, 2 * (72 * len(ids) + 3 * 2 * ids[:, 0].nbytes))
    with pytest.raises(TraceError, match="array experts_3 needs"):
        load_any(tmp_path / "l.npz", HINTS)


def test_short_lists_of_json_take_many_times_their_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps({"routed_experts": [[[0, 1]]] * 1000}, separators=(",", ":"))
    (tmp_path / "t.json").write_text(text)
    assert load_any(tmp_path / "t.json", HINTS).tokens == 1000
    memory(monkeypatch, 2 * 40 * len(text))
    with pytest.raises(TraceError, match=r"JSON of .* needs"):
        load_any(tmp_path / "t.json", HINTS)


def test_a_long_text_in_every_row_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pa.array([[0, 1]] * 5_000, pa.list_(pa.uint8()))
    category = pa.array(["x" * 100_000]).take(pa.array(np.zeros(5_000, np.int32)))
    write_columns(tmp_path / "t.parquet", ids, category=category)
    before = pa.total_allocated_bytes()
    trace = load_any(tmp_path / "t.parquet", HINTS)
    assert len(trace.categories[0]) == 100_000
    assert pa.total_allocated_bytes() - before < 10_000_000
    memory(monkeypatch, 300_000)
    with pytest.raises(TraceError, match="a row group with text needs"):
        load_any(tmp_path / "t.parquet", HINTS)


def test_names_that_a_file_could_not_hold_are_not_written(tmp_path: Path) -> None:
    trace = random_trace(categories=("a", "x" * MAX_CATEGORY_BYTES))
    with pytest.raises(TraceError, match="categories: may take at most 16777216 bytes in all"):
        write_trace(trace, tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="categories: must be valid Unicode"):
        write_trace(random_trace(categories=("a", "\ud800")), tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


def test_a_process_may_have_less_memory_than_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (12345, -1))
    assert usable_memory() == 12345
