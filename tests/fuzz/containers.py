"""Mutations of whole files by their containers: bytes of any, and what stands in the ones that are known."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.fuzz.trees import mutated, to_json

_BOUNDARIES = (0, 1, 2**15, 2**31 - 1, 2**32 - 1)
_DTYPES = ("u1", "i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", ">i4", "U3", "S3", "?", "c8", "M8[s]", "O")
_ARROW = (
    *(
        pa.int8(),
        pa.uint64(),
        pa.int64(),
        pa.float16(),
        pa.float64(),
        pa.string(),
        pa.large_string(),
        pa.bool_(),
    ),
    *(pa.binary(), pa.date32(), pa.decimal128(5), pa.null()),
)
_CELLS = (
    "",
    " ",
    "-1",
    "0",
    "1e9",
    "nan",
    "inf",
    "x",
    '"',
    "\0",
    "1 2 3",
    "[]",
    "[1,2",
    "9" * 30,
    "\x1b",
    "é",
    "1;2",
)


def mutate(path: Path, rng: random.Random) -> None:
    """Change ``path`` in its own way, or in its bytes alone."""
    content = path.read_bytes()
    known = _KNOWN.get(path.suffix)
    changed = None
    if known is not None and rng.random() < 0.7:
        # What the container's own library cannot write needs no reader.
        with contextlib.suppress(Exception):
            changed = known(content, rng)
    path.write_bytes(_bytes(content, rng) if changed is None else changed)


def _bytes(content: bytes, rng: random.Random) -> bytes:
    """Bits, bytes and numbers changed, parts removed, repeated, moved or cut off; half of it near the end."""
    copy = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not copy:
            break
        at = rng.randrange(0 if rng.random() < 0.5 else len(copy) * 3 // 5, len(copy))
        size = rng.randrange(1, 9)
        kind = rng.randrange(8)
        if kind == 0:
            copy[at] = rng.randrange(256)
        elif kind == 1:
            copy[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del copy[at : at + size]
        elif kind == 3:
            copy[at:at] = rng.randbytes(size)
        elif kind == 4:
            copy[at : at + 4] = rng.choice(_BOUNDARIES).to_bytes(4, "little")
        elif kind == 5:
            start = rng.randrange(len(copy))
            copy[at:at] = copy[start : start + rng.choice((4, 64, 1024))]
        elif kind == 6:
            copy[at : at + size] = rng.choice((b"\0", b"\xff", b'"', b"\n", b",", b"[")) * size
        elif rng.random() < 0.3:
            del copy[at:]
    return bytes(copy)


def _json(content: bytes, rng: random.Random) -> bytes:
    try:
        return to_json(mutated(json.loads(content), rng))
    except ValueError:  # lines
        lines = content.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        try:
            lines[at] = to_json(mutated(json.loads(lines[at]), rng)) + b"\n"
        except ValueError:  # base64
            return _bytes(content, rng)
        return b"".join(lines)


def _yaml(content: bytes, rng: random.Random) -> bytes:
    changed = mutated(yaml.safe_load(content), rng)
    return to_json(changed) if rng.random() < 0.5 else _dumped(changed)


def _dumped(tree: Any) -> bytes:
    try:
        return yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        return to_json(tree)


def _csv(content: bytes, rng: random.Random) -> bytes:
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(rng.choice((1, 1, 3))):
        row = rows[0] if rng.random() < 0.2 else rng.choice(rows)
        at = rng.randrange(len(row)) if row else 0
        kind = rng.randrange(5)
        if kind == 0 and row:
            del row[at]
        elif kind == 1:
            row.insert(at, rng.choice(_CELLS))
        elif kind == 2:
            rows.append(list(row))
        elif row:
            row[at] = rng.choice((*_CELLS, *rng.choice(rows)))
    return "\n".join(map(",".join, rows)).encode()


def array(values: np.ndarray[Any, Any], rng: random.Random) -> np.ndarray[Any, Any]:
    """Another array: other values, another dtype, another shape."""
    kind = rng.randrange(4)
    with np.errstate(all="ignore"):
        if kind == 0 and values.size:
            changed = values.copy()
            changed.flat[rng.randrange(values.size)] = rng.choice((0, 1, 7, 100))
            return changed
        if kind == 1 and values.size and values.dtype.kind in "iuf":
            wide = values.astype(rng.choice(("i8", "f8")))
            wide.flat[rng.randrange(values.size)] = rng.choice((-1, 255, 65_536, 2**31, -(2**63)))
            return wide
        if kind == 2:
            dtype = np.dtype(rng.choice(_DTYPES))
            try:
                return values.astype(dtype)
            except (ValueError, TypeError):
                return np.zeros(values.shape, dtype)
    shape = tuple(rng.choice((0, 1, 2, 3, 8, 70)) for _ in range(rng.randrange(5)))
    return np.resize(values, shape) if rng.random() < 0.7 else np.asfortranarray(np.resize(values, shape))


def _arrays(arrays: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    changed = dict(arrays)
    name = rng.choice(list(changed))
    kind = rng.randrange(6)
    if kind == 0:
        del changed[name]
    elif kind == 1:
        changed[rng.choice(("x", f"{name}x", "experts_99999", "0_0", ""))] = changed[name]
    else:
        changed[name] = array(changed[name], rng)
    return changed


def _npz(content: bytes, rng: random.Random) -> bytes:
    with np.load(io.BytesIO(content), allow_pickle=False) as npz:
        arrays = dict(npz)
    out = io.BytesIO()
    save: Callable[..., Any] = np.savez if rng.random() < 0.5 else np.savez_compressed
    save(out, **_arrays(arrays, rng))
    return out.getvalue()


def _npy(content: bytes, rng: random.Random) -> bytes:
    out = io.BytesIO()
    np.save(out, array(np.load(io.BytesIO(content)), rng))
    return out.getvalue()


def _parquet(content: bytes, rng: random.Random) -> bytes:
    table = pq.read_table(io.BytesIO(content))
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    kind = rng.randrange(7)
    if kind == 0:
        table = table.remove_column(at)
    elif kind == 1:
        table = table.append_column(rng.choice((f"{name}x", "experts_7", "category", "\0")), column)
    elif kind == 2:
        table = table.set_column(at, name, _cast(column, rng))
    elif kind == 3:
        null = pa.array([None if rng.random() < 0.3 else value for value in column.to_pylist()], column.type)
        table = table.set_column(at, pa.field(name, column.type), null)
    elif kind == 4 and table.num_rows:
        table = table.take(pa.array([rng.randrange(table.num_rows) for _ in range(rng.choice((1, 5, 50)))]))
    else:
        meta = dict(table.schema.metadata or {})
        found = json.loads(meta.get(b"moesim", b"{}"))
        table = table.replace_schema_metadata(meta | {b"moesim": to_json(mutated(found, rng))})
    out = io.BytesIO()
    pq.write_table(
        table, out, compression=rng.choice(("none", "zstd", "snappy")), store_schema=rng.random() < 0.5
    )
    return out.getvalue()


def _cast(column: Any, rng: random.Random) -> Any:
    kind = rng.choice(_ARROW)
    if rng.random() < 0.4:
        kind = rng.choice((pa.list_(kind), pa.list_(kind, 2), pa.large_list(kind), pa.struct([("a", kind)])))
    try:
        return column.cast(kind)
    except pa.ArrowException:
        return pa.nulls(len(column), kind)


def _torch(content: bytes, rng: random.Random) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(_tensors(mutated(torch.load(io.BytesIO(content), weights_only=True), rng), rng), out)
    return out.getvalue()


def _tensors(tree: Any, rng: random.Random) -> Any:
    import torch

    if isinstance(tree, dict):
        return {key: _tensors(value, rng) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_tensors(value, rng) for value in tree]
    if isinstance(tree, torch.Tensor) and rng.random() < 0.3:
        return torch.from_numpy(array(tree.numpy(), rng).copy())
    return tree


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    from safetensors.numpy import load, save

    return save({name: np.ascontiguousarray(values) for name, values in _arrays(load(content), rng).items()})


_KNOWN: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _json,
    ".jsonl": _json,
    ".yaml": _yaml,
    ".csv": _csv,
    ".npz": _npz,
    ".npy": _npy,
    ".parquet": _parquet,
    ".pt": _torch,
    ".safetensors": _safetensors,
}
