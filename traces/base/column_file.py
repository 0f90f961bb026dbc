"""Flat tables of numbers and names in Parquet: strict columns, our ``format`` key, equal bytes.

Used for tables whose columns are all known in advance (timelines, counted work). Codes are int8 in
memory and dictionary strings in the file, so that pandas or polars show names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traces.base import parquet
from traces.base.errors import TimelineError
from traces.base.files import check_format, whole_file
from traces.base.memory import require_memory

# More rows than this are a lie, or do not fit beside the rest.
MAX_ROWS: Final = 100_000_000
_ROW_BYTES: Final = 150  # in memory, Arrow's columns beside our arrays
_ROW_GROUP: Final = 1 << 20


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type in memory, the smallest value allowed, the names if it holds codes."""

    name: str
    type: Any
    low: int | None = None
    names: tuple[str, ...] = ()

    def check(self, array: np.ndarray, rows: int, file: str | Path | None) -> None:
        """Refuse an array of another dtype, shape or length, and values out of range.

        Raises:
            TimelineError: naming the column, the row, the rule and the value.
        """
        dtype = self.type.to_pandas_dtype()
        if array.dtype != dtype:
            rule = f"must be {np.dtype(dtype)}"
            raise TimelineError(rule, file=file, field=self.name, got=array.dtype)
        if array.shape != (rows,):
            raise TimelineError(f"must have {rows} rows", file=file, field=self.name, got=array.shape)
        if not rows:
            return
        if np.issubdtype(array.dtype, np.floating):
            bad, rule = ~np.isfinite(array), "must be finite"
        elif self.names:
            bad, rule = (array < 0) | (array >= len(self.names)), f"must be a code below {len(self.names)}"
        else:
            bad, rule = array < self.low, f"must be at least {self.low}"
        if bad.any():
            row = int(bad.argmax())
            raise TimelineError(rule, file=file, field=f"{self.name}, row {row}", got=array[row].item())


def write_columns(
    path: str | Path,
    thing: str,
    columns: Sequence[Column],
    arrays: Mapping[str, np.ndarray],
    constant: Mapping[str, str] | None = None,
) -> None:
    """Write arrays as one Parquet table of format ``moesim.<thing>/1``.

    Args:
        arrays: one array per column, by column name.
        constant: text columns with one value in all rows; they come first.

    Raises:
        OutputError: the file cannot be written.
    """
    constant = constant or {}
    rows = len(next(iter(arrays.values())))
    data = {name: _dictionary(np.zeros(rows, np.int8), (value,)) for name, value in constant.items()}
    for column in columns:
        values = arrays[column.name]
        data[column.name] = _dictionary(values, column.names) if column.names else pa.array(values)
    # The constants stand in the metadata too: a table without rows still knows its run.
    header = {"format": f"moesim.{thing}/1", **constant}
    table = pa.table(data).replace_schema_metadata({"moesim": json.dumps(header)})
    with whole_file(path) as partial, parquet.to_write(partial) as out:
        pq.write_table(
            table,
            out,
            row_group_size=_ROW_GROUP,
            compression="zstd",
            # Times hardly repeat: a dictionary of them costs time and saves nothing.
            use_dictionary=[c.name for c in columns if not pa.types.is_floating(c.type)] + list(constant),
            write_statistics=["step", "layer"],
        )


def read_columns(
    path: str | Path, thing: str, columns: Sequence[Column], constant: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read what :func:`write_columns` wrote: arrays by column name, and the constants.

    Columns that are not asked for are left unread. Values are the caller's to check.

    Raises:
        TimelineError: not a readable Parquet file, another format, a column that is missing, has
            another type, holds nulls or unknown names.
    """
    source = Path(path)
    with parquet.open_parquet(source, TimelineError) as file:
        header = _header(file, source, thing, constant)
        names = set(file.schema_arrow.names)
        for column in columns:
            if column.name not in names:
                raise TimelineError("is missing", file=path, field=column.name)
        rows = file.metadata.num_rows
        if rows > MAX_ROWS:
            rule = f"must hold at most {MAX_ROWS} rows"
            raise TimelineError(rule, file=path, got=rows)
        texts = [column.name for column in columns if column.names]
        parquet.require_texts(file, texts, source, TimelineError)
        require_memory(_ROW_BYTES * rows, f"a table of {rows} rows", error=TimelineError, file=path)
        with parquet.reading(source, TimelineError):
            table = file.read([column.name for column in columns])
    arrays = {column.name: _array(table.column(column.name), column, path) for column in columns}
    return arrays, header


def _header(file: Any, path: Path, thing: str, constant: Sequence[str]) -> dict[str, str]:
    """The constants from the schema's metadata, once its format is known to be ours."""
    header = parquet.read_metadata(file, path, TimelineError) or {}
    check_format(header.get("format"), thing, 1, file=path, error=TimelineError)
    for name in constant:
        if not isinstance(header.get(name), str):
            raise TimelineError("must be text", file=path, field=f"metadata {name}", got=header.get(name))
    return {name: header[name] for name in constant}


def _dictionary(codes: np.ndarray, names: Sequence[str]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.string()))


def _array(values: Any, column: Column, path: str | Path) -> np.ndarray:
    if values.null_count:
        raise TimelineError("must not hold nulls", file=path, field=column.name, got=values.null_count)
    if not column.names:
        if values.type != column.type:
            raise TimelineError(f"must be {column.type}", file=path, field=column.name, got=values.type)
        array: np.ndarray = values.to_numpy()
        return array
    if pa.types.is_string(values.type):
        values = values.dictionary_encode()
    if not pa.types.is_dictionary(values.type) or not pa.types.is_string(values.type.value_type):
        raise TimelineError("must be text", file=path, field=column.name, got=values.type)
    # Each row group may bring a dictionary of its own.
    parts = [_codes(chunk, column, path) for chunk in values.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, np.int8)


def _codes(chunk: Any, column: Column, path: str | Path) -> np.ndarray:
    """Codes into ``column.names`` of one dictionary array."""
    known = {name: code for code, name in enumerate(column.names)}
    found = chunk.dictionary.to_pylist()
    for name in found:
        if name not in known:
            rule = f"must be one of {', '.join(column.names)}"
            raise TimelineError(rule, file=path, field=column.name, got=name)
    translate = np.array([known[name] for name in found], np.int8)
    with parquet.reading(Path(path), TimelineError):
        codes: np.ndarray = translate[parquet.indices_of(chunk)]
    return codes
