"""Routing in numpy's ``.npz``: all requests in one file, one file for each, or one array for each layer.

Nothing is unpickled, and an array's claimed size is checked against the file before it is allocated.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from traces.base.arrays import Array
from traces.base.errors import TraceError, named, reason_of
from traces.base.input_file import files_in, require_files
from traces.base.memory import require_memory
from traces.interop.archive import FAULTS, open_archive
from traces.interop.hints import Hints
from traces.interop.npy import DAMAGED, read_header
from traces.interop.recording import Part, Recording, count_up, from_requests, to_int32
from traces.interop.written import Written

_EXPERTS_ARRAY = re.compile(r"experts_(0|[1-9][0-9]{0,3})")
_PROMPT, _OUTPUT = "prompt_routed_experts", "routed_experts"
# Bytes in memory for one of an array, and beside these for each of its rows: what is made of them, measured.
_TIMES, _ROW_BYTES = {"iu": 2, "f": 2, "U": 6}, 72
_DEFLATE_LIMIT = 1032  # deflate cannot expand by more (zlib technical details); what claims more lies


class NpzArrays:
    """One file: ``topk_ids`` [T, L, K], ``request_offsets`` [R+1], and what else is known.

    Optional: ``topk_weights`` [T, L, K], ``position`` [T] (else counted from 0), ``category`` [R].
    """

    summary: ClassVar[str] = "one .npz with topk_ids [tokens, layers, K] and request_offsets"

    def detects(self, path: Path) -> bool:
        return "topk_ids" in _array_names(path)

    def open(self, path: Path, hints: Hints) -> Recording:
        with _NpzFile(path) as npz:
            ids_TLK = npz.read("topk_ids", "iu", 3)
            offsets = npz.read("request_offsets", "iu", 1)
            _check_offsets(offsets, len(ids_TLK), path)
            ends = offsets.astype(np.int64)
            lengths_R = ends[1:] - ends[:-1]
            position = npz.read("position", "iu", 1) if "position" in npz.names else count_up(lengths_R)
            weights = npz.read("topk_weights", "f", 3) if "topk_weights" in npz.names else None
            category = npz.read("category", "U", 1) if "category" in npz.names else None
        if ids_TLK.size == 0:
            raise TraceError("has no tokens", file=path, got=ids_TLK.shape)
        layers = hints.layers or tuple(range(ids_TLK.shape[1]))
        if len(layers) != ids_TLK.shape[1]:
            rule = f"must be {len(layers)}, as {hints.name} has"
            raise TraceError(rule, file=path, field="layers", got=ids_TLK.shape[1])
        meta = hints.meta(ids_TLK.shape[2], layers, file=path, largest=int(ids_TLK.max()))
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
        if weights is not None and weights.shape != ids_TLK.shape:
            rule = f"must have shape {ids_TLK.shape}"
            raise TraceError(rule, file=path, field="topk_weights", got=weights.shape)
        if len(position) != len(ids_TLK):
            rule = f"must have {len(ids_TLK)} entries, one for each token"
            raise TraceError(rule, file=path, field="position", got=len(position))
        written = Written()
        trace = written.piece(
            meta,
            ids_TLK,
            request_T,
            file=path,
            weights_TLK=None if weights is None else _as_weights(weights),
            position_T=to_int32(position, "position", path),
            category_T=category_T,
            categories=categories,
        )
        return Recording(path, meta, iter([trace]), categories, written)


class NpzRequests:
    """A folder with one ``.npz`` for each request, in order of their names, or one such file.

    Each holds ``routed_experts`` [tokens, layers, K], as vLLM and SGLang return it for a request, with
    a row for every hidden layer or for each MoE layer, and perhaps ``prompt_routed_experts`` of the tokens
    before them, and ``position`` [tokens] of all.
    """

    summary: ClassVar[str] = "a folder with one .npz for each request: routed_experts [tokens, layers, K]"

    def detects(self, path: Path) -> bool:
        files = files_in(path, ".npz")
        return bool(files) and bool({_PROMPT, _OUTPUT} & _array_names(files[0]))

    def open(self, path: Path, hints: Hints) -> Recording:
        files = require_files(path, ".npz", TraceError)
        return from_requests(map(_request, range(len(files)), files), hints, file=path)


class NpzLayers:
    """One file with the outputs of router modules: ``experts_<layer>`` [tokens, K] for each MoE layer.

    What forward hooks on Hugging Face models collect, concatenated over calls. Optional:
    ``weights_<layer>`` [tokens, K], for all layers or none; ``request`` and ``position`` [tokens], without
    which all tokens are one request.
    """

    summary: ClassVar[str] = "one .npz with experts_<layer> [tokens, K] of each router, as hooks collect them"

    def detects(self, path: Path) -> bool:
        return bool(_layers(_array_names(path)))

    def open(self, path: Path, hints: Hints) -> Recording:
        with _NpzFile(path) as npz:
            layers = _layers(npz.names)
            if not layers:
                rule = f"lacks arrays experts_<layer>; it has {named(sorted(npz.names))}"
                raise TraceError(rule, file=path)
            ids_TLK = npz.stack("experts", layers, "iu")
            weights = npz.stack("weights", layers, "f") if f"weights_{layers[0]}" in npz.names else None
            tokens = len(ids_TLK)
            request = npz.read("request", "iu", 1) if "request" in npz.names else np.zeros(tokens, np.int32)
            position = npz.read("position", "iu", 1) if "position" in npz.names else None
        if ids_TLK.size == 0:
            raise TraceError("has no tokens", file=path, got=ids_TLK.shape)
        for name, array in (("request", request), ("position", position)):
            if array is not None and len(array) != tokens:
                rule = f"must have {tokens} entries, one for each token"
                raise TraceError(rule, file=path, field=name, got=len(array))
        if position is None:
            starts = np.flatnonzero(np.diff(request, prepend=request[0]) != 0)
            position = count_up(np.diff(np.concatenate(([0], starts, [len(request)]))))
        if hints.layers is not None and not set(layers) <= set(hints.layers):
            got = ", ".join(map(str, layers))
            raise TraceError(f"must be MoE layers of {hints.name}", file=path, field="layers", got=got)
        meta = hints.meta(ids_TLK.shape[2], layers, file=path, largest=int(ids_TLK.max()))
        written = Written()
        trace = written.piece(
            meta,
            ids_TLK,
            to_int32(request, "request", path),
            file=path,
            weights_TLK=None if weights is None else _as_weights(weights),
            position_T=to_int32(position, "position", path),
        )
        return Recording(path, meta, iter([trace]), written=written)


class _NpzFile:
    """The arrays of an ``.npz``, each checked against the file's size before it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._reading(), contextlib.ExitStack() as opened:
            self._zip = opened.enter_context(open_archive(path, "an .npz file", TraceError))
            self._opened = opened.pop_all()
        self._taken = 0
        self.names = {name.removesuffix(".npy") for name in self._zip.namelist()}

    def __enter__(self) -> _NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read(self, name: str, kinds: str, axes: int) -> Array:
        """The array ``name``, whose dtype is one of ``kinds`` (numpy's letters), with ``axes`` axes."""
        if name not in self.names:
            raise TraceError(f"lacks the array {name}; it has {named(sorted(self.names))}", file=self.path)
        with self._reading(name):
            entry = self._zip.getinfo(f"{name}.npy")
            if entry.file_size > _DEFLATE_LIMIT * max(entry.compress_size, 1):
                rule = "is damaged: it claims to expand further than its compression can"
                raise TraceError(rule, file=self.path, field=name, got=f"{entry.file_size} bytes")
            with self._zip.open(entry) as stream:
                shape, _, dtype, header_size = read_header(stream)
                if dtype.kind not in kinds or len(shape) != axes:
                    rule = f"must be {_KINDS[kinds]} with {axes} axes"
                    raise TraceError(rule, file=self.path, field=name, got=f"{dtype} {shape}")
                claimed = math.prod(shape) * dtype.itemsize
                if claimed != entry.file_size - header_size:
                    rule = f"is damaged: shape {shape} does not match {entry.file_size - header_size} bytes"
                    raise TraceError(rule, file=self.path, field=name)
            # One after the other, they stay.
            self._taken += _TIMES[kinds] * claimed
            needed = self._taken + _ROW_BYTES * shape[0]
            require_memory(needed, f"array {name}", error=TraceError, file=self.path)
            with self._zip.open(entry) as stream:
                array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        return np.ascontiguousarray(array)

    def stack(self, kind: str, layers: tuple[int, ...], kinds: str) -> Array:
        """``<kind>_<layer>`` [T, K] of each layer as one array [T, L, K]."""
        parts = [self.read(f"{kind}_{layer}", kinds, 2) for layer in layers]
        for layer, part in zip(layers, parts, strict=True):
            if part.shape != parts[0].shape:
                rule = f"must have shape {parts[0].shape}, as {kind}_{layers[0]}"
                raise TraceError(rule, file=self.path, field=f"{kind}_{layer}", got=part.shape)
        return np.stack(parts, axis=1)

    @contextlib.contextmanager
    def _reading(self, field: str | None = None) -> Iterator[None]:
        """Whatever zipfile, zlib and numpy raise for a damaged file, as one error."""
        try:
            yield
        except TraceError:
            raise
        except (FileNotFoundError, PermissionError) as fault:
            raise TraceError(f"cannot be read: {fault.strerror}", file=self.path) from fault
        except (*DAMAGED, *FAULTS) as fault:
            rule = f"is damaged or not an .npz file: {reason_of(fault)}"
            raise TraceError(rule, file=self.path, field=field) from fault


_KINDS = {"iu": "whole numbers", "f": "floats", "U": "text"}


def _array_names(path: Path) -> set[str]:
    """The arrays of ``path``; none where it is no sound ``.npz``."""
    try:
        with _NpzFile(path) as npz:
            return npz.names
    except TraceError:
        return set()


def _layers(names: set[str]) -> tuple[int, ...]:
    found = (_EXPERTS_ARRAY.fullmatch(name) for name in names)
    return tuple(sorted(int(match[1]) for match in found if match))


def _request(request: int, file: Path) -> Part:
    with _NpzFile(file) as npz:
        names = [name for name in (_PROMPT, _OUTPUT) if name in npz.names]
        if not names:
            raise TraceError(f"lacks the array {_OUTPUT}; it has {named(sorted(npz.names))}", file=file)
        parts = [npz.read(name, "iu", 3) for name in names]
        if parts[0].shape[1:] != parts[-1].shape[1:]:
            rule = f"must have the layers and K of {_OUTPUT}, {parts[-1].shape[1:]}"
            raise TraceError(rule, file=file, field=_PROMPT, got=parts[0].shape[1:])
        ids_TLK = np.concatenate(parts) if len(parts) > 1 else parts[0]
        own = "position" in npz.names
        position = npz.read("position", "iu", 1) if own else np.arange(len(ids_TLK))
    if len(position) != len(ids_TLK):
        rule = f"must have {len(ids_TLK)} entries, one for each token of {' and '.join(names)}"
        raise TraceError(rule, file=file, field="position", got=len(position))
    return Part(request, ids_TLK, to_int32(position, "position", file), file)


def _check_offsets(offsets: Array, tokens: int, path: Path) -> None:
    place: dict[str, Any] = {"file": path, "field": "request_offsets"}
    if len(offsets) < 2 or offsets[0] != 0:
        raise TraceError("must start at 0 and name at least one request", **place)
    if offsets[-1] != tokens:
        raise TraceError(f"must end at {tokens}, the number of tokens", **place, got=offsets[-1])
    if (offsets[1:] <= offsets[:-1]).any():
        request = int(np.argmax(offsets[1:] <= offsets[:-1]))
        raise TraceError("must ascend: a request has at least one token", **place, got=f"request {request}")


def _as_weights(weights_TLK: Array) -> Array:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        return weights_TLK if weights_TLK.dtype == np.float16 else weights_TLK.astype(np.float32)
