"""Parquet files that others may have written or damaged: opening, metadata, and lists as arrays."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traces.base.arrays import Array
from traces.base.errors import MoesimError, reason_of
from traces.base.input_file import first_bytes, require_file

MAGIC = b"PAR1"
_METADATA_KEY = b"moesim"
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


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet does, sound or not."""
    return first_bytes(path, len(MAGIC)) == MAGIC


def open_parquet(path: Path, error: type[MoesimError]) -> pq.ParquetFile:
    """Open ``path``, reading its footer only."""
    require_file(path, "a Parquet file", error)
    with reading(path, error):
        file = pq.ParquetFile(
            path,
            thrift_string_size_limit=_THRIFT_LIMIT,
            thrift_container_size_limit=_THRIFT_LIMIT,
            page_checksum_verification=True,
        )
        footer = file.metadata
        groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        if min(groups, default=0) < 0 or sum(groups) != footer.num_rows:
            raise error(f"is damaged: its row groups hold {sum(groups)} rows", file=path, got=footer.num_rows)
        names = file.schema_arrow.names
        if len(set(names)) != len(names):
            raise error("has two columns of one name", file=path)
        return file


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


def from_lists(
    column: pa.Array, width: int, *, path: Path, field: str, error: type[MoesimError], first_row: int = 0
) -> Array:
    """A column of lists, fixed-size or not, as an [N, width] array of the numbers' own type."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        if kind.list_size != width:
            raise error(f"must hold lists of {width}", file=path, field=field, got=kind.list_size)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if column.null_count == 0:
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            if (lengths != width).any():
                row = int(np.argmax(lengths != width))
                place = f"{field}, row {first_row + row}"
                raise error(f"must hold lists of {width}", file=path, field=place, got=lengths[row])
    else:
        raise error("must be a column of lists", file=path, field=field, got=kind)
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise error("must not be null", file=path, field=f"{field}, row {first_row + row}")
    return to_numbers(column.flatten(), path=path, field=field, error=error).reshape(-1, width)


def to_numbers(column: pa.Array, *, path: Path, field: str, error: type[MoesimError]) -> Array:
    """A column of integers or floats without nulls as an array."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise error("must be numbers", file=path, field=field, got=column.type)
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise error("must not hold nulls", file=path, field=field, got=f"null as number {row}")
    values: Array = column.to_numpy(zero_copy_only=False)
    return values


def narrow(
    values: Array,
    dtype: np.dtype[Any],
    *,
    path: Path,
    field: str,
    error: type[MoesimError],
    first_row: int = 0,
) -> Array:
    """Integers as ``dtype``; a value that it cannot hold is an error, as is anything but integers."""
    if values.dtype == dtype:
        return values
    if values.dtype.kind not in "iu":
        raise error("must be whole numbers", file=path, field=field, got=values.dtype)
    limits = np.iinfo(dtype)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        index = np.argwhere((values < limits.min) | (values > limits.max))[0]
        place = f"{field}, row {first_row + int(index[0])}"
        rule = f"must be between {limits.min} and {limits.max}"
        raise error(rule, file=path, field=place, got=values[tuple(index)])
    return values.astype(dtype)
