"""Load tables as files: JSON or Parquet of ours, and SGLang's ``logical_count`` JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traces.base import parquet
from traces.base.door import first_bytes, require_file
from traces.base.errors import LoadTableError
from traces.base.files import check_format, whole_file, write_text
from traces.base.input_file import MAX_JSON_BYTES, read_json
from traces.base.memory import require_memory
from traces.load_table import (
    HEADER,
    LoadTable,
    check_header,
    drop_idle_layers,
    to_counts,
    whole_where_whole,
)

FORMAT = "moesim.load_table/1"
_GLANCE, _KEYS = 1 << 16, (b'"format"', b'"logical_count"', b'"load"')  # looked for in so many bytes of JSON
_BATCH_COUNTS = 1 << 24  # counts decoded at once, 128 MB


def write_load_table(table: LoadTable, path: str | Path) -> None:
    """Check and write ``table``: Parquet where the name ends in ``.parquet``, JSON otherwise.

    Raises:
        LoadTableError: the table breaks a rule, or is too large for JSON.
        OutputError: the file cannot be written.
    """
    target = Path(path)
    table.validate()
    meta = {"format": FORMAT, **table.header}
    if target.suffix == ".parquet":
        _write_parquet(table, meta, target)
        return
    text = _to_json(table, meta)
    if len(text) > MAX_JSON_BYTES:
        raise LoadTableError("is too large for JSON: name a .parquet file", file=target, got=len(text))
    write_text(target, text)


def read_load_table(path: str | Path) -> LoadTable:
    """Read a load table of ours, or ``{"logical_count": …}`` as SGLang's users pass it around.

    ``logical_count`` is [layers][experts] or [windows][layers][experts] over all hidden layers; rows
    without any load are dense layers and left out, the others keep their index.

    Raises:
        LoadTableError: unreadable, of another format, or against a rule.
    """
    source = Path(path)
    require_file(source, "a load table", LoadTableError)
    if parquet.is_parquet(source):
        return _read_parquet(source)
    content = read_json(source, "a load table", LoadTableError)
    if "format" not in content and "logical_count" in content:
        return _from_logical_count(content["logical_count"], source)
    check_format(content.get("format"), "load_table", 1, file=source, error=LoadTableError)
    if "load" not in content:
        raise LoadTableError("is missing", file=source, field="load")
    counts = to_counts(content["load"], file=source, field="load")
    return _table(_header(content, source), counts, source)


def is_load_table(path: str | Path) -> bool:
    """Whether the file looks like a load table, sound or not: JSON, or Parquet that says so."""
    source = Path(path)
    if not parquet.is_parquet(source):
        head = first_bytes(source, _GLANCE)
        return head.lstrip()[:1] == b"{" and any(key in head for key in _KEYS)
    try:
        with parquet.open_parquet(source, LoadTableError) as file:
            meta = parquet.read_metadata(file, source, LoadTableError) or {}
    except LoadTableError:
        return False
    return str(meta.get("format")).startswith("moesim.load_table/")


def _to_json(table: LoadTable, meta: dict[str, Any]) -> str:
    """One line for each field, window and layer."""
    fields = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in meta.items()]
    windows = (
        "[\n  " + ",\n  ".join(json.dumps(row, separators=(",", ":")) for row in window) + "]"
        for window in table.load_WLE.tolist()
    )
    return "{" + ",\n ".join([*fields, f'"load": [{", ".join(windows)}]']) + "}\n"


def _write_parquet(table: LoadTable, meta: dict[str, Any], target: Path) -> None:
    windows, layers, experts = table.load_WLE.shape
    columns = {
        "window": pa.array(np.repeat(np.arange(windows, dtype=np.int32), layers)),
        "layer": pa.array(np.tile(np.array(table.layers, np.int32), windows)),
        "load": parquet.to_lists(table.load_WLE.reshape(-1, experts)),
    }
    plain = pa.table(columns)
    stamped = plain.replace_schema_metadata(parquet.with_metadata(plain.schema, meta).metadata)
    with whole_file(target) as partial, parquet.to_write(partial) as out:
        pq.write_table(stamped, out, compression="zstd", write_page_checksum=True)


def _read_parquet(source: Path) -> LoadTable:
    with parquet.open_parquet(source, LoadTableError) as file:
        meta = parquet.read_metadata(file, source, LoadTableError) or {}
        check_format(meta.get("format"), "load_table", 1, file=source, error=LoadTableError)
        header = _header(meta, source)
        layers, experts = header["layers"], header["experts"]
        rows = file.metadata.num_rows
        if rows == 0 or rows % len(layers):
            rule = f"must hold a row for each window and each of {len(layers)} layers"
            raise LoadTableError(rule, file=source, got=f"{rows} rows")
        names = ["window", "layer", "load"]
        parquet.require_columns(file, names, source, LoadTableError)
        require_memory(2 * rows * experts * 8, "the load table", error=LoadTableError, file=source)
        with parquet.reading(source, LoadTableError):
            batches = list(file.iter_batches(max(1, _BATCH_COUNTS // experts), columns=names))
            load_NE = np.concatenate([_loads(batch, experts, source) for batch in batches])
            _check_rows(batches, layers, rows, source)
    return _table(header, whole_where_whole(load_NE).reshape(-1, len(layers), experts), source)


def _loads(batch: pa.RecordBatch, experts: int, source: Path) -> Any:
    cells = parquet.Cells(source, "load", LoadTableError)
    load_NE = parquet.from_lists(batch.column("load"), experts, cells)
    return load_NE if load_NE.dtype.kind == "f" else parquet.narrow(load_NE, np.dtype(np.int64), cells)


def _check_rows(batches: list[pa.RecordBatch], layers: tuple[int, ...], rows: int, source: Path) -> None:
    """Rows are ordered by window, from 0, and layer."""
    expected = {
        "window": np.repeat(np.arange(rows // len(layers)), len(layers)),
        "layer": np.tile(np.array(layers), rows // len(layers)),
    }
    for name, wanted in expected.items():
        cells = parquet.Cells(source, name, LoadTableError)
        got = np.concatenate([parquet.to_numbers(batch.column(name), cells) for batch in batches])
        if got.shape != wanted.shape or (got != wanted).any():
            raise cells.error("rows must be ordered by window, from 0, then layer")


def _from_logical_count(found: Any, source: Path) -> LoadTable:
    count_WLE = to_counts(found, file=source, field="logical_count")
    layers, load_WLE = drop_idle_layers(count_WLE)
    if not layers:
        raise LoadTableError("has no load in any layer", file=source, field="logical_count")
    header = {"model": "", "experts": load_WLE.shape[2], "layers": layers, "origin": "SGLang logical_count"}
    header["hidden_layers"] = count_WLE.shape[1]  # it has a row for each of them
    return _table(header, load_WLE, source)


def _header(content: dict[str, Any], source: Path) -> dict[str, Any]:
    """The metadata's fields, checked."""
    for key in HEADER:
        if key not in content:
            raise LoadTableError("is missing", file=source, field=key)
    header = {key: content[key] for key in (*HEADER, "hidden_layers") if key in content}
    if isinstance(header["layers"], list):
        header["layers"] = tuple(header["layers"])
    check_header(header, file=source)
    return header


def _table(header: dict[str, Any], load_WLE: Any, source: Path) -> LoadTable:
    table = LoadTable(load_WLE=load_WLE, **header)
    table.validate(file=source)
    return table
