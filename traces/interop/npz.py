"""Routing in numpy's ``.npz``: one file with all requests, or one file for each request.

Nothing is unpickled, and an array's claimed size is checked against the file before it is allocated.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.input_file import require_file
from traces.memory import require_memory
from traces.meta import TraceMeta, in_file
from traces.routing import RoutingTrace, join

Array = npt.NDArray[Any]

_DEFLATE_LIMIT = 1032  # deflate cannot expand by more (zlib technical details); what claims more lies


class NpzArrays:
    """One file: ``topk_ids`` [T, L, K], ``request_offsets`` [R+1], and what else is known.

    Optional: ``topk_weights`` [T, L, K], ``position`` [T] (else counted from 0), ``category`` [R].
    """

    summary: ClassVar[str] = "one .npz with topk_ids [tokens, layers, K] and request_offsets"

    def detects(self, path: Path) -> bool:
        return _has_array(path, "topk_ids")

    def convert(
        self,
        path: Path,
        *,
        model: str,
        experts: int | None,
        layers: tuple[int, ...] | None,
        origin: str,
        licence: str,
    ) -> RoutingTrace:
        with _NpzFile(path) as npz:
            ids_TLK = npz.read("topk_ids", "iu", 3)
            offsets = npz.read("request_offsets", "iu", 1)
            _check_offsets(offsets, len(ids_TLK), path)
            lengths_R = np.diff(offsets)
            position = npz.read("position", "iu", 1) if "position" in npz.names else _count_up(lengths_R)
            weights = npz.read("topk_weights", "f", 3) if "topk_weights" in npz.names else None
            category = npz.read("category", "U", 1) if "category" in npz.names else None
        ids_TLK, meta = _fit(ids_TLK, model, experts, layers, origin, licence, path)
        request_T = np.repeat(np.arange(len(lengths_R), dtype=np.int32), lengths_R)
        categories: tuple[str, ...] = ()
        category_T = None
        if category is not None:
            if len(category) != len(lengths_R):
                rule = f"must have one entry for each of {len(lengths_R)} requests"
                raise TraceError(rule, file=path, field="category", got=len(category))
            names, codes_R = np.unique(category, return_inverse=True)
            categories = tuple(names.tolist())
            category_T = codes_R.astype(np.int32)[request_T]
        trace = RoutingTrace(
            meta=meta,
            ids_TLK=ids_TLK,
            weights_TLK=None if weights is None else _as_weights(weights),
            request_T=request_T,
            position_T=_as_int32(position, "position", path),
            category_T=category_T,
            categories=categories,
        )
        trace.validate(file=path)
        return trace


class NpzRequests:
    """A folder with one ``.npz`` for each request, in order of their names, or one such file.

    Each holds ``routed_experts`` [tokens, layers, K], as vLLM and SGLang return it for a request, and
    perhaps ``position`` [tokens]. Where ``layers`` names fewer layers than the arrays have, they have
    a row for every hidden layer, dense ones too, and the named rows are taken.
    """

    summary: ClassVar[str] = "a folder with one .npz for each request: routed_experts [tokens, layers, K]"

    def detects(self, path: Path) -> bool:
        files = _request_files(path)
        return bool(files) and _has_array(files[0], "routed_experts")

    def convert(
        self,
        path: Path,
        *,
        model: str,
        experts: int | None,
        layers: tuple[int, ...] | None,
        origin: str,
        licence: str,
    ) -> RoutingTrace:
        files = _request_files(path)
        if not files:
            raise TraceError("holds no .npz file", file=path)
        pieces: list[RoutingTrace] = []
        for request, file in enumerate(files):
            with _NpzFile(file) as npz:
                ids_TLK = npz.read("routed_experts", "iu", 3)
                own = "position" in npz.names
                position = npz.read("position", "iu", 1) if own else np.arange(len(ids_TLK))
            if layers is not None and len(layers) < ids_TLK.shape[1] and max(layers) < ids_TLK.shape[1]:
                ids_TLK = ids_TLK[:, list(layers)]
            ids_TLK, meta = _fit(ids_TLK, model, experts, layers, origin, licence, file)
            piece = RoutingTrace(
                meta=meta,
                ids_TLK=ids_TLK,
                weights_TLK=None,
                request_T=np.full(len(ids_TLK), request, np.int32),
                position_T=_as_int32(position, "position", file),
            )
            piece.validate(file=file)
            if pieces and piece.meta != pieces[0].meta:
                shape, first = ids_TLK.shape[1:], pieces[0].ids_TLK.shape[1:]
                rule = f"must have {first[0]} layers and {first[1]} experts per token, as {files[0].name}"
                raise TraceError(rule, file=file, field="routed_experts", got=shape)
            pieces.append(piece)
        return join(pieces, sum(piece.tokens for piece in pieces), file=path)


class _NpzFile:
    """The arrays of an ``.npz``, each checked against the file's size before it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        require_file(path, "an .npz file", TraceError)
        with self._reading():
            self._zip = zipfile.ZipFile(path)
        self.names = {name.removesuffix(".npy") for name in self._zip.namelist()}

    def __enter__(self) -> _NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, name: str, kinds: str, axes: int) -> Array:
        """The array ``name``, whose dtype is one of ``kinds`` (numpy's letters), with ``axes`` axes."""
        if name not in self.names:
            raise TraceError(f"lacks the array {name}", file=self.path)
        with self._reading(name):
            entry = self._zip.getinfo(f"{name}.npy")
            if entry.file_size > _DEFLATE_LIMIT * max(entry.compress_size, 1):
                rule = "is damaged: it claims to expand further than its compression can"
                raise TraceError(rule, file=self.path, field=name, got=f"{entry.file_size} bytes")
            require_memory(entry.file_size, f"array {name}", error=TraceError, file=self.path)
            with self._zip.open(entry) as stream:
                shape, dtype, header_size = _read_header(stream)
                if dtype.kind not in kinds or len(shape) != axes:
                    rule = f"must be {_KINDS[kinds]} with {axes} axes"
                    raise TraceError(rule, file=self.path, field=name, got=f"{dtype} {shape}")
                claimed = math.prod(shape) * dtype.itemsize
                if claimed != entry.file_size - header_size:
                    rule = f"is damaged: shape {shape} does not match {entry.file_size - header_size} bytes"
                    raise TraceError(rule, file=self.path, field=name)
            with self._zip.open(entry) as stream:
                array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        return np.ascontiguousarray(array)

    @contextlib.contextmanager
    def _reading(self, field: str | None = None) -> Iterator[None]:
        """Whatever zipfile, zlib and numpy raise for a damaged file, as one error."""
        try:
            yield
        except TraceError:
            raise
        except (FileNotFoundError, PermissionError) as fault:
            raise TraceError(f"cannot be read: {fault.strerror}", file=self.path) from fault
        except (
            zipfile.BadZipFile,
            zlib.error,
            struct.error,
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            MemoryError,
            RuntimeError,  # an encrypted entry; RecursionError and NotImplementedError are kinds of it
            SyntaxError,
        ) as fault:
            reason = (str(fault).splitlines() or [type(fault).__name__])[0][:200]
            raise TraceError(
                f"is damaged or not an .npz file: {reason}", file=self.path, field=field
            ) from fault


_KINDS = {"iu": "whole numbers", "f": "floats", "U": "text"}


def _read_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and size in bytes of an ``.npy`` header."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy version {version}")
    shape, _, dtype = readers[version](stream)
    return shape, dtype, stream.tell()


def _has_array(path: Path, name: str) -> bool:
    if not path.is_file():
        return False
    try:
        with _NpzFile(path) as npz:
            return name in npz.names
    except TraceError:
        return False


def _request_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.npz")) if path.is_dir() else [path]


def _fit(
    ids_TLK: Array,
    model: str,
    experts: int | None,
    layers: tuple[int, ...] | None,
    origin: str,
    licence: str,
    path: Path,
) -> tuple[Array, TraceMeta]:
    """Ids in the dtype of their model, and the metadata; E is never guessed."""
    if ids_TLK.size == 0:
        raise TraceError("has no tokens", file=path, got=ids_TLK.shape)
    largest = int(ids_TLK.max())
    if experts is None:
        rule = f"does not tell the number of experts: name it (--experts N; the largest id is {largest})"
        raise TraceError(rule, file=path)
    if largest >= experts or ids_TLK.min() < 0:
        token, layer, column = np.argwhere((ids_TLK >= experts) | (ids_TLK < 0))[0].tolist()
        rule = f"expert id must be at least 0 and below {experts}"
        place = f"layer row {layer}, token {token}"
        raise TraceError(rule, file=path, field=place, got=ids_TLK[token, layer, column])
    rows = ids_TLK.shape[1]
    if layers is not None and len(layers) != rows:
        raise TraceError(f"has {rows} layers", file=path, field="layers", got=f"{len(layers)} layers named")
    try:
        meta = TraceMeta(model, experts, ids_TLK.shape[2], layers or tuple(range(rows)), origin, licence)
    except TraceError as error:
        raise in_file(error, path) from error
    return ids_TLK.astype(meta.ids_dtype, copy=False), meta


def _check_offsets(offsets: Array, tokens: int, path: Path) -> None:
    place: dict[str, Any] = {"file": path, "field": "request_offsets"}
    if len(offsets) < 2 or offsets[0] != 0:
        raise TraceError("must start at 0 and name at least one request", **place)
    if offsets[-1] != tokens:
        raise TraceError(f"must end at {tokens}, the number of tokens", **place, got=offsets[-1])
    if (offsets[1:] <= offsets[:-1]).any():
        request = int(np.argmax(offsets[1:] <= offsets[:-1]))
        raise TraceError("must ascend: a request has at least one token", **place, got=f"request {request}")


def _count_up(lengths_R: Array) -> Array:
    """0, 1, 2, … inside each request."""
    ends = np.cumsum(lengths_R)
    counted: Array = np.arange(ends[-1]) - np.repeat(ends - lengths_R, lengths_R)
    return counted


def _as_int32(values: Array, field: str, path: Path) -> Array:
    if values.max(initial=0) > np.iinfo(np.int32).max or values.min(initial=0) < 0:
        raise TraceError("must be between 0 and 2147483647", file=path, field=field)
    return values.astype(np.int32, copy=False)


def _as_weights(weights_TLK: Array) -> Array:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        return weights_TLK if weights_TLK.dtype == np.float16 else weights_TLK.astype(np.float32)
