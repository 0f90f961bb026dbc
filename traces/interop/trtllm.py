"""The expert statistics of TensorRT-LLM (examples/wide_ep/ep_load_balancer): a folder of safetensors.

``meta_info.json`` tells E and K. ``rank<r>.safetensors`` has counts [E], ``rank<r>_raw.safetensors`` the
experts that each token selected [tokens, K], both under the key ``<iteration>_<layer>``. Layers are true
indices, ids are logical.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from traces.base.arrays import Array
from traces.base.door import is_folder, is_regular, names_in, require_file
from traces.base.errors import LoadTableError, MoesimError, TraceError, reason_of
from traces.base.input_file import read_json
from traces.interop.hints import Hints
from traces.interop.loads import to_table
from traces.interop.recording import Recording
from traces.interop.written import Written
from traces.load_table import LoadTable
from traces.meta import MAX_EXPERTS, TraceMeta
from traces.routing import RoutingTrace

Key = tuple[int, int]  # iteration, layer

_META = "meta_info.json"
_RANK_FILE = re.compile(r"rank(0|[1-9][0-9]{0,5})(_raw)?\.safetensors")
_KEY = re.compile(r"(0|[1-9][0-9]{0,8})_(0|[1-9][0-9]{0,3})")


class TrtllmCounts:
    """Counts of each iteration, a window each, summed over ranks."""

    summary: ClassVar[str] = "TensorRT-LLM statistics, a folder: meta_info.json and rank<r>.safetensors"

    def detects(self, path: Path) -> bool:
        return is_regular(path / _META) and bool(_rank_files(path, raw=False))

    def open(self, path: Path, hints: Hints) -> LoadTable:
        experts, _ = _meta(path, LoadTableError)
        ranks = _ranks(path, False, LoadTableError)
        keys: dict[Key, None] | None = None
        total: dict[Key, Array] = {}
        for file in ranks:
            with _RankFile(file, LoadTableError) as rank:
                keys = keys or rank.keys
                if rank.keys.keys() != keys.keys():
                    iteration, layer = min(rank.keys.keys() ^ keys.keys())
                    rule = (
                        f"iteration {iteration}, layer {layer} stands in {ranks[0].name} or here, not in both"
                    )
                    raise LoadTableError(rule, file=file)
                for key in keys:
                    count_E = rank.read(key, 1)
                    if count_E.shape != (experts,):
                        rule = f"must have {experts} counts, as {_META} says"
                        raise LoadTableError(rule, file=file, field=_name(key), got=count_E.shape)
                    total[key] = total.get(key, 0) + count_E.astype(np.int64)
        iterations, layers = _grid(total, ranks[0], LoadTableError)
        load_WLE = np.stack([[total[iteration, layer] for layer in layers] for iteration in iterations])
        return to_table(load_WLE, hints, file=path, origin="TensorRT-LLM statistics", layers=layers)


class TrtllmTokens:
    """Experts that each token selected, of each iteration and rank.

    Which tokens belong to one request is not recorded: the tokens of a rank in an iteration stand as one
    request, in the order of their batch, with the iteration as their step and the rank as their source.
    """

    summary: ClassVar[str] = (
        "TensorRT-LLM raw statistics, a folder: meta_info.json and rank<r>_raw.safetensors"
    )

    def detects(self, path: Path) -> bool:
        return is_regular(path / _META) and bool(_rank_files(path, raw=True))

    def open(self, path: Path, hints: Hints) -> Recording:
        experts, top_k = _meta(path, TraceError)
        ranks = _ranks(path, True, TraceError)
        with _RankFile(ranks[0], TraceError) as rank:
            iterations, layers = _grid(rank.keys, ranks[0], TraceError)
        origin = "TensorRT-LLM raw statistics"
        meta = hints.meta(top_k, layers, file=path, experts=experts, origin=origin)
        written = Written()
        return Recording(path, meta, _pieces(ranks, iterations, meta, written), written=written)


def _pieces(
    ranks: list[Path], iterations: list[int], meta: TraceMeta, written: Written
) -> Iterator[RoutingTrace | None]:
    request = 0
    for number, file in enumerate(ranks):
        with _RankFile(file, TraceError) as rank:
            if _grid(rank.keys, file, TraceError) != (iterations, meta.layers):
                raise TraceError(f"must have the iterations and layers of {ranks[0].name}", file=file)
            for iteration in iterations:
                parts = [rank.read((iteration, layer), 2) for layer in meta.layers]
                for layer, part in zip(meta.layers, parts, strict=True):
                    if part.shape != (len(parts[0]), meta.top_k):
                        rule = f"must have shape {(len(parts[0]), meta.top_k)}"
                        raise TraceError(rule, file=file, field=_name((iteration, layer)), got=part.shape)
                if not len(parts[0]):
                    continue
                tokens = len(parts[0])
                yield written.piece(
                    meta,
                    np.stack(parts, axis=1),
                    np.full(tokens, request, np.int32),
                    file=file,
                    weights_TLK=None,
                    position_T=np.arange(tokens, dtype=np.int32),
                    step_T=np.full(tokens, iteration, np.int32),
                    source_rank_T=np.full(tokens, number, np.int32),
                )
                request += 1


class _RankFile:
    """A safetensors file whose tensors are read one by one."""

    def __init__(self, path: Path, error: type[MoesimError]) -> None:
        self.path, self._error = path, error
        require_file(path, "a safetensors file", error)
        from safetensors import SafetensorError, safe_open  # here: other formats do without it

        self._faults = (SafetensorError, OSError, ValueError, TypeError, OverflowError, MemoryError)
        try:
            file: Any = safe_open(path, framework="numpy")
            self._file = file
            names = list(file.keys())
        except self._faults as fault:
            raise self._damaged(fault) from fault
        self.keys: dict[Key, None] = {}
        for name in names:
            match = _KEY.fullmatch(name)
            if match is None:
                raise error("must be named <iteration>_<layer>", file=path, field="tensor", got=name)
            self.keys[int(match[1]), int(match[2])] = None

    def __enter__(self) -> _RankFile:
        self._file.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)

    def read(self, key: Key, axes: int) -> Array:
        """Whole numbers with ``axes`` axes."""
        try:
            found: Array = self._file.get_tensor(_name(key))
        except self._faults as fault:
            raise self._damaged(fault) from fault
        if found.dtype.kind not in "iu" or found.ndim != axes:
            rule = f"must be whole numbers with {axes} axes"
            raise self._error(rule, file=self.path, field=_name(key), got=f"{found.dtype} {found.shape}")
        return found

    def _damaged(self, fault: Exception) -> MoesimError:
        rule = f"is damaged or not a safetensors file: {reason_of(fault)}"
        return self._error(rule, file=self.path)


def _meta(path: Path, error: type[MoesimError]) -> tuple[int, int]:
    """E and K."""
    file = path / _META
    content = read_json(file, "the metadata of TensorRT-LLM's statistics", error)
    values = []
    for name in ("num_experts", "num_experts_per_token"):
        value = content.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_EXPERTS:
            raise error(f"must be a whole number from 1 to {MAX_EXPERTS}", file=file, field=name, got=value)
        values.append(value)
    return values[0], values[1]


def _rank_files(path: Path, *, raw: bool) -> dict[int, Path]:
    if not is_folder(path):
        return {}
    found = (_RANK_FILE.fullmatch(name) for name in names_in(path, TraceError))
    return {int(match[1]): path / match[0] for match in found if match and bool(match[2]) == raw}


def _ranks(path: Path, raw: bool, error: type[MoesimError]) -> list[Path]:
    """The files of ranks 0, 1, … without a gap."""
    files = _rank_files(path, raw=raw)
    kind = "_raw" if raw else ""
    for rank in range(max(files, default=0) + 1):
        if rank not in files:
            raise error(f"lacks rank{rank}{kind}.safetensors", file=path)
    return [files[rank] for rank in sorted(files)]


def _grid(keys: dict[Key, Any], file: Path, error: type[MoesimError]) -> tuple[list[int], tuple[int, ...]]:
    """Iterations and layers, of which every pair must be there."""
    if not keys:
        raise error("holds no tensor", file=file)
    iterations = sorted({iteration for iteration, _ in keys})
    layers = tuple(sorted({layer for _, layer in keys}))
    for iteration in iterations:
        for layer in layers:
            if (iteration, layer) not in keys:
                raise error(f"lacks layer {layer} of iteration {iteration}", file=file)
    return iterations, layers


def _name(key: Key) -> str:
    return f"{key[0]}_{key[1]}"
