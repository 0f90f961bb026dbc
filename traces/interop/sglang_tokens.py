"""Tokens in the files of SGLang's expert distribution recorder, mode per_token.

Axes: L all hidden layers, T tokens of a forward pass, P physical experts (slots), and 8 columns, in which
−1 pads a smaller K, dense layers and tokens that are no tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from traces.base.arrays import Array
from traces.base.errors import TraceError
from traces.interop.hints import Hints
from traces.interop.recording import Recording, to_int32
from traces.interop.sglang import Record, read_records, recorder_mode
from traces.interop.torch_file import tensor
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

_COLUMNS = 8  # fixed in SGLang's recorder


class SglangTokens:
    """``topk_ids_of_layer`` of each forward pass and rank, slots made logical by the last map.

    Requests are not named in the file. A chunk of prefill is a request, or continues one that the prefill
    before it left at this position; a decoded token continues a request of the rank that waits for its
    position, the longest waiting first. So requests of equal length may exchange their ends. Ranks of one
    tensor-parallel group record the same tokens, which count once.
    """

    summary: ClassVar[str] = "SGLang recorder, mode per_token (.pt, or a folder with one for each rank)"

    def detects(self, path: Path) -> bool:
        return recorder_mode(path) == "per_token"

    def open(self, path: Path, hints: Hints) -> Recording:
        passes = list(_passes(read_records(path, TraceError)))
        if not passes:
            raise TraceError("has no tokens", file=path)
        slot_expert_LS = passes[0].record.slot_expert_LS
        layers = _moe_layers(passes, hints, path)
        top_k = max(int((each.slots_LTK >= 0).sum(axis=2).max()) for each in passes)
        if hints.top_k is not None and hints.top_k > _COLUMNS:
            rule = f"keeps {_COLUMNS} of the {hints.top_k} experts of a token, which is no whole choice"
            raise TraceError(rule, file=path)
        experts = int(slot_expert_LS.max()) + 1
        origin = "SGLang recorder, mode per_token"
        hidden = len(slot_expert_LS)
        meta = hints.meta(top_k, layers, file=path, experts=experts, origin=origin, hidden_layers=hidden)
        return Recording(path, meta, iter([_trace(passes, meta)]))


@dataclass(frozen=True)
class _Pass:
    """One forward pass of one rank: positions int64 [T], slots int64 [L, T, 8], tokens of each chunk."""

    record: Record
    position_T: Array
    slots_LTK: Array
    lengths: list[int]
    prefill: bool


class _Requests:
    """Which request of a rank each chunk of a pass continues, told by positions."""

    def __init__(self, new: Iterator[int]) -> None:
        self._new = new
        # Requests by the position that they wait for, in order; a prompt's last chunk stands in both.
        self._decoding: dict[int, dict[int, None]] = defaultdict(dict)
        self._prefilled: dict[int, dict[int, None]] = defaultdict(dict)

    def decode(self, position_T: list[int]) -> list[int]:
        """A token of each running request; one that has none has ended."""
        before, self._decoding = self._decoding, defaultdict(dict)
        requests = []
        for position in position_T:
            request = self._first(before[position], self._prefilled[position])
            self._decoding[position + 1][request] = None
            requests.append(request)
        return requests

    def prefill(self, starts: list[int], lengths: list[int]) -> list[int]:
        """A chunk of each request; one may continue what the prefill before it left unfinished."""
        before, self._prefilled = self._prefilled, defaultdict(dict)
        requests = []
        for start, length in zip(starts, lengths, strict=True):
            request = self._first(before[start], self._decoding[start])
            self._decoding[start + length][request] = None
            self._prefilled[start + length][request] = None
            requests.append(request)
        return requests

    def _first(self, waiting: dict[int, None], also: dict[int, None]) -> int:
        """The request that waits longest, which then waits no more; a new one where none does."""
        request = next(iter(waiting), None)
        if request is None:
            return next(self._new)
        del waiting[request]
        also.pop(request, None)
        return request


def _passes(records: list[Record]) -> Iterator[_Pass]:
    """The passes with tokens, each tensor-parallel group's once."""
    before: list[_Pass] = []
    for record in records:
        found = _read_pass(record)
        before = [each for each in before if each.record.forward_pass == record.forward_pass]
        copy = any(
            np.array_equal(found.position_T, each.position_T)
            and np.array_equal(found.slots_LTK, each.slots_LTK)
            for each in before
        )
        before.append(found)
        if len(found.position_T) and not copy:
            yield found


def _read_pass(record: Record) -> _Pass:
    place: dict[str, Any] = {"file": record.file}
    fields = record.fields
    name = f"topk_ids_of_layer of forward pass {record.forward_pass}"
    slots_LTK = tensor(fields.get("topk_ids_of_layer"), name, 3, file=record.file, error=TraceError)
    layers, slots = record.slot_expert_LS.shape
    position_T = _numbers(fields.get("positions"), "positions", record)
    if slots_LTK.shape != (layers, len(position_T), _COLUMNS):
        rule = f"must have shape {(layers, len(position_T), _COLUMNS)}, as map and positions"
        raise TraceError(rule, **place, field=name, got=slots_LTK.shape)
    if slots_LTK.size and (slots_LTK.max() >= slots or slots_LTK.min() < -1):
        layer, token, column = np.argwhere((slots_LTK >= slots) | (slots_LTK < -1))[0]
        rule = f"slot must be below {slots}, or -1"
        at = f"{name}, layer {layer}, token {token}"
        raise TraceError(rule, **place, field=at, got=slots_LTK[layer, token, column])
    extend = fields.get("extend_seq_lens")
    lengths = [1] * len(position_T)
    if extend is not None:
        lengths = _numbers(extend, "extend_seq_lens", record).tolist()
        if sum(lengths) != len(position_T):
            rule = f"must sum to {len(position_T)}, the tokens of the pass"
            raise TraceError(
                rule, **place, field=f"extend_seq_lens of {record.forward_pass}", got=sum(lengths)
            )
    return _Pass(record, position_T, slots_LTK, [length for length in lengths if length], extend is not None)


def _numbers(value: object, name: str, record: Record) -> Array:
    """A list of whole numbers that int32 holds, as an array."""
    place: dict[str, Any] = {
        "file": record.file,
        "field": f"{name} of forward pass {record.forward_pass}",
    }
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise TraceError("must be a list of whole numbers", **place)
    if value and (min(value) < 0 or max(value) >= 2**31):
        raise TraceError("must be between 0 and 2147483647", **place)
    return np.array(value, np.int64)


def _moe_layers(passes: list[_Pass], hints: Hints, path: Path) -> tuple[int, ...]:
    """Layers in which any token chose an expert."""
    chosen_L = np.any([(each.slots_LTK >= 0).any(axis=(1, 2)) for each in passes], axis=0)
    layers = tuple(np.flatnonzero(chosen_L).tolist())
    if not layers:
        raise TraceError("has no token that chose an expert", file=path)
    if hints.layers is not None and layers != hints.layers:
        rule = f"{hints.name} has MoE layers {', '.join(map(str, hints.layers))}"
        raise TraceError(rule, file=path, field="layers", got=", ".join(map(str, layers)))
    return layers


def _trace(passes: list[_Pass], meta: TraceMeta) -> RoutingTrace:
    new = count()
    requests_of: dict[int, _Requests] = defaultdict(lambda: _Requests(new))
    columns: list[tuple[Array, ...]] = []
    for each in passes:
        rank = requests_of[each.record.rank]
        position_T = each.position_T
        starts = np.cumsum([0, *each.lengths[:-1]])
        if each.prefill:
            requests = rank.prefill(position_T[starts].tolist(), each.lengths)
        else:
            requests = rank.decode(position_T.tolist())
        request_T = np.repeat(np.array(requests, np.int32), each.lengths)
        real_T, ids_TLK = _logical(each, meta)
        tokens = len(ids_TLK)
        columns.append(
            (
                ids_TLK,
                request_T[real_T],
                to_int32(position_T[real_T], "positions", each.record.file),
                np.full(tokens, each.record.forward_pass, np.int32),
                np.full(tokens, each.record.rank, np.int32),
            )
        )
    ids_TLK, request_T, position_T, step_T, rank_T = (
        np.concatenate(column) for column in zip(*columns, strict=True)
    )
    order_T = np.lexsort((position_T, request_T))
    # A request may consist of padding alone: what remains is counted anew.
    request_T = np.unique(request_T[order_T], return_inverse=True)[1].astype(np.int32)
    return RoutingTrace(
        meta=meta,
        ids_TLK=ids_TLK[order_T],
        weights_TLK=None,
        request_T=request_T,
        position_T=position_T[order_T],
        step_T=step_T[order_T],
        source_rank_T=rank_T[order_T],
    )


def _logical(each: _Pass, meta: TraceMeta) -> tuple[Array, Array]:
    """Which tokens are real, bool [T], and the logical experts of these [T', L, K]."""
    slots_LTK = each.slots_LTK[list(meta.layers)]
    chosen_LT = (slots_LTK >= 0).sum(axis=2)
    real_T = chosen_LT.any(axis=0)
    leading_LT = (slots_LTK[:, :, : meta.top_k] >= 0).all(axis=2)
    bad_LT = real_T & ~((chosen_LT == meta.top_k) & leading_LT)
    if bad_LT.any():
        row, token = np.argwhere(bad_LT)[0].tolist()
        at = f"forward pass {each.record.forward_pass}, layer {meta.layers[row]}, token {token}"
        rule = f"must choose {meta.top_k} experts in every MoE layer, or none in any"
        raise TraceError(rule, file=each.record.file, field=at, got=chosen_LT[row, token])
    map_LS = each.record.slot_expert_LS[list(meta.layers)].astype(meta.ids_dtype)
    kept_LTK = slots_LTK[:, real_T, : meta.top_k]
    ids_LTK = np.stack([map_S[slots_TK] for map_S, slots_TK in zip(map_LS, kept_LTK, strict=True)])
    return real_T, np.ascontiguousarray(ids_LTK.transpose(1, 0, 2))
