"""Parquet files that others may have written or damaged: opening, metadata, and lists as arrays."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traces.base.arrays import Array
from traces.base.door import first_bytes, require_file
from traces.base.errors import MoesimError, reason_of
from traces.base.memory import require_memory

MAGIC = b"PAR1"
_METADATA_KEY = b"moesim"
_TEXT_TIMES = 2  # bytes in memory for one of a row group with text: Arrow's and Python's
_THRIFT_LIMIT = 256 * 2**20  # bytes and items of a footer: a damaged one may claim any number


@contextlib.contextmanager
def reading(path: Path, error: type[MoesimError]) -> Iterator[None]:
    """Turn whatever a missing, foreign or damaged file causes into one clear ``error``."""
    try:
        yield
    except MoesimError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as fault:
        raise error(f"cannot be read: {fault.strerror or fault}", file=path) from fault
    except MemoryError as fault:  # pyarrow's too
        raise error("is damaged, or does not fit into memory", file=path) from fault
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as fault:
        raise error(f"is damaged or not a Parquet file: {reason_of(fault)}", file=path) from fault


def indices_of(array: pa.DictionaryArray) -> Array:
    """Indices into the dictionary of an array, -1 for null.

    Raises:
        ValueError: one lies beyond the dictionary: Arrow decodes a damaged file without looking.
    """
    indices: Array = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    if len(indices) and not -1 <= indices.min() <= indices.max() < len(array.dictionary):
        raise ValueError("a value points beyond the values of its column")
    return indices


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet does, sound or not."""
    return first_bytes(path, len(MAGIC)) == MAGIC


def open_parquet(path: Path, error: type[MoesimError]) -> pq.ParquetFile:
    """Open ``path``, reading its footer only."""
    require_file(path, "a Parquet file", error)
    with reading(path, error):
        file = _opened(path)
        texts = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
        if texts:  # a text that stands in every row is kept once
            file.close(force=True)
            file = _opened(path, read_dictionary=texts)
        footer = file.metadata
        groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        if min(groups, default=0) < 0 or sum(groups) != footer.num_rows:
            raise error(f"is damaged: its row groups hold {sum(groups)} rows", file=path, got=footer.num_rows)
        names = file.schema_arrow.names
        if len(set(names)) != len(names):
            raise error("has two columns of one name", file=path)
        return file


def to_write(path: Path) -> pa.OSFile:
    """A new file of any name; Arrow itself knows only names in UTF-8."""
    return pa.OSFile(os.fsencode(path), "wb")


def _opened(path: Path, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.OSFile(os.fsencode(path)),
        thrift_string_size_limit=_THRIFT_LIMIT,
        thrift_container_size_limit=_THRIFT_LIMIT,
        page_checksum_verification=True,
        **options,
    )


def require_texts(file: pq.ParquetFile, names: Iterable[str], path: Path, error: type[MoesimError]) -> None:
    """Refuse columns of text whose row groups do not fit into memory; each other text is kept once.

    Of a row group only the whole size can be asked: pyarrow ends the process where the metadata of one of its
    columns is damaged.
    """
    if set(names) & set(file.schema_arrow.names):
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        most = max((group.total_byte_size for group in groups), default=0)
        require_memory(_TEXT_TIMES * most, "a row group with text", error=error, file=path)


def read_metadata(file: pq.ParquetFile, path: Path, error: type[MoesimError]) -> dict[str, Any] | None:
    """The JSON object under the schema's key ``moesim``, or None where the file has no such key."""
    with reading(path, error):
        text = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
        if text is None:
            return None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as fault:
            raise error("metadata key moesim is not JSON", file=path) from fault
        if not isinstance(found, dict):
            raise error("metadata key moesim must be a JSON object", file=path)
        return found


def require_columns(file: pq.ParquetFile, names: Iterable[str], path: Path, error: type[MoesimError]) -> None:
    """Refuse a file that lacks a column."""
    known = frozenset(file.schema_arrow.names)
    for name in names:
        if name not in known:
            raise error(f"lacks column {name}", file=path)


def with_metadata(schema: pa.Schema, metadata: dict[str, Any]) -> pa.Schema:
    """``schema`` with ``metadata`` under the key ``moesim``."""
    return schema.with_metadata({_METADATA_KEY: json.dumps(metadata).encode()})


def list_type(dtype: np.dtype[Any], width: int) -> pa.DataType:
    """The Arrow type of one row of an [N, width] array: nothing in it may be null."""
    return pa.list_(pa.field("element", pa.from_numpy_dtype(dtype), nullable=False), width)


def to_lists(values_NW: Array) -> pa.Array:
    """An [N, W] array as a column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values_NW).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=list_type(values_NW.dtype, values_NW.shape[1]))


@dataclass(frozen=True)
class Cells:
    """A column's place, for messages, and the error of its file; its first value is row ``first_row``."""

    path: Path
    column: str
    kind: type[MoesimError]
    first_row: int = 0

    def error(self, rule: str, row: int | np.integer[Any] | None = None, **got: Any) -> MoesimError:
        """The error of the column, or of one of its rows, counted from the first of these."""
        field = self.column if row is None else f"{self.column}, row {self.first_row + int(row)}"
        return self.kind(rule, file=self.path, field=field, **got)


def from_lists(column: pa.Array, width: int, cells: Cells) -> Array:
    """A column of lists, fixed-size or not, as an [N, width] array of the numbers' own type."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        if kind.list_size != width:
            raise cells.error(f"must hold lists of {width}", got=kind.list_size)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if column.null_count == 0:
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            if (lengths != width).any():
                row = np.argmax(lengths != width)
                raise cells.error(f"must hold lists of {width}", row, got=lengths[row])
    else:
        raise cells.error("must be a column of lists", got=kind)
    if column.null_count:
        raise cells.error("must not be null", _first_null(column))
    return to_numbers(column.flatten(), cells).reshape(-1, width)


def to_numbers(column: pa.Array, cells: Cells) -> Array:
    """A column of integers or floats without nulls as an array."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise cells.error("must be numbers", got=column.type)
    if column.null_count:
        raise cells.error("must not hold nulls", got=f"null as number {_first_null(column)}")
    values: Array = column.to_numpy(zero_copy_only=False)
    return values


def narrow(values: Array, dtype: np.dtype[Any], cells: Cells) -> Array:
    """Integers as ``dtype``; a value that it cannot hold is an error, as is anything but integers."""
    if values.dtype == dtype:
        return values
    if values.dtype.kind not in "iu":
        raise cells.error("must be whole numbers", got=values.dtype)
    limits = np.iinfo(dtype)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        index = np.argwhere((values < limits.min) | (values > limits.max))[0]
        rule = f"must be between {limits.min} and {limits.max}"
        raise cells.error(rule, index[0], got=values[tuple(index)])
    return values.astype(dtype)


def _first_null(column: pa.Array) -> int:
    return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
