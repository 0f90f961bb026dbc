"""Seconds of every kernel of a step on each GPU: all that costs time but transfers and fixed costs.

G GPUs, X kernels of a step in program order: those of one phase in one layer are one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.kernels import Kernels
from moesim.hardware.small_kernels import RowsOf
from moesim.simulation.part import Home, Part
from moesim.spec.attention import Attention
from moesim.spec.model import Model
from moesim.spec.profile import Phase

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Key = tuple[Phase, int]
"""Phase and true layer index, -1 for what belongs to the whole step."""

# What `workload.part: moe` leaves of the kernels.
_MOE = ("router", "other", "shared_expert", "experts")


@dataclass(frozen=True, eq=False)
class Layout:
    """Which kernels a step has.

    Attributes:
        keys: their rows in [X, G], in program order.
        rows: those of each phase; ``attention``: of each attention.
    """

    keys: Mapping[Key, int]
    rows: Mapping[Phase, IntArray]
    attention: Mapping[Attention, IntArray]

    @classmethod
    def of(cls, model: Model, *, host: bool, moe_only: bool) -> Layout:
        """The kernels of a model's step.

        Args:
            host: whether the host waits in each layer with experts. It stands before whatever could run
                beside a transfer: a host that waits launches nothing.
            moe_only: whether only what belongs to the experts runs.
        """
        experts: list[Phase] = ["router", *(["other"] if host else [])]  # type: ignore[list-item]
        experts += ["shared_expert", "experts"] if model.experts.shared_width else ["experts"]
        dense = set(range(model.layers)) - set(model.moe_layers)
        keys: list[Key] = []
        for layer in range(model.layers):
            keys.append(("attention", layer))
            keys += [("dense", layer)] if layer in dense else [(phase, layer) for phase in experts]
        keys.append(("other", -1))
        if moe_only:
            keys = [(phase, layer) for phase, layer in keys if phase in _MOE and layer >= 0]
        rows: dict[Phase, list[int]] = {}
        attention: dict[Attention, list[int]] = {}
        for row, (phase, layer) in enumerate(keys):
            rows.setdefault(phase, []).append(row)
            if phase == "attention":
                attention.setdefault(model.attention_in(layer), []).append(row)
        return cls(
            {key: row for row, key in enumerate(keys)},
            {phase: np.array(own) for phase, own in rows.items()},
            {each: np.array(own) for each, own in attention.items()},
        )


class Busy(Mapping[Key, FloatArray]):
    """Seconds of a step's kernels on each GPU.

    Attributes:
        seconds_XG: of all of them; by its key, [G] seconds of one.
    """

    def __init__(self, layout: Layout, seconds_XG: FloatArray) -> None:
        self.layout, self.seconds_XG = layout, seconds_XG

    def __getitem__(self, key: Key) -> FloatArray:
        return self.seconds_XG[self.layout.keys[key]]  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.layout.keys)

    def __len__(self) -> int:
        return len(self.layout.keys)


@dataclass(frozen=True)
class Overlapped:
    """Phases that compute beside transfer kernels, which occupy ``sms`` multiprocessors."""

    phases: frozenset[Phase]
    sms: int


def busy_seconds(
    kernels: Kernels,
    layout: Layout,
    part: Part,
    slot_gpu_S: NDArray[np.int32],
    graph_sizes: Sequence[int] | None,
    overlapped: Overlapped,
) -> Busy:
    """What the kernels of one step, or of one micro-batch, take on each GPU.

    Args:
        kernels: the cost model.
        layout: which of them run.
        part: what they work on.
        slot_gpu_S: the GPU of each slot.
        graph_sizes: batch sizes to which all that runs at home is padded.
        overlapped: which phases compute beside transfers.
    """
    tokens = part.tokens
    # Where a transfer may run at the same time, its kernels take their multiprocessors.
    beside = kernels.beside(overlapped.sms) if overlapped.phases else kernels

    def during(phase: Phase) -> Kernels:
        return beside if phase in overlapped.phases else kernels

    padded_G = padded(tokens.tokens_G, graph_sizes)
    seconds_XG = np.zeros((len(layout.keys), len(padded_G)))
    # Layers differ in routing and, by kinds and windows, in attention; the rest is computed once.
    for attention, rows in layout.attention.items():
        seconds_XG[rows] = _attention(during("attention"), attention, tokens, padded_G)
    for phase, kernel in (
        ("router", during("router").router),
        ("shared_expert", during("shared_expert").shared_expert),
        ("dense", during("dense").dense),
    ):
        if phase in layout.rows:
            seconds_XG[layout.rows[phase]] = kernel(padded_G)  # type: ignore[index]
    if "experts" in layout.rows:
        seconds_XG[layout.rows["experts"]] = part.experts_s(during("experts"), slot_gpu_S)
    if ("other", -1) in layout.keys:
        seconds_XG[-1] = kernels.head(tokens.last_G)
    if kernels.small:
        _add_small(seconds_XG, layout, kernels, part, padded_G)
    if _launched_by_the_host(tokens, graph_sizes):
        hosted_X = np.array([kernels.hosted_s(*key) for key in layout.keys])
        np.maximum(seconds_XG, hosted_X[:, None], out=seconds_XG)
    return Busy(layout, seconds_XG)


def _attention(kernels: Kernels, attention: Attention, tokens: Home, padded_G: FloatArray) -> FloatArray:
    """The attention of one layer: projections, scores, and what indexers and recurrent states add."""
    decode_G, prefill_G = (tokens.keys_G(attention.attended, prefill=prefill) for prefill in (False, True))
    seconds_G = kernels.attention(padded_G, decode_G, prefill_G, attention)
    if attention.index_heads is not None:
        decode_G, prefill_G = (tokens.keys_G(attention.scanned, prefill=prefill) for prefill in (False, True))
        seconds_G = seconds_G + kernels.index(decode_G + prefill_G, attention)
    if attention.kind == "linear":
        seconds_G = seconds_G + kernels.recurrence(padded_G, tokens.last_G, attention)
    return seconds_G


def _add_small(
    seconds_XG: FloatArray, layout: Layout, kernels: Kernels, part: Part, padded_G: FloatArray
) -> None:
    """Add what runs between the matrices."""
    work, prefilling_G = part.work, part.tokens.prefilling_G
    home: dict[RowsOf, FloatArray] = {
        "tokens": padded_G,
        "decoding": np.maximum(padded_G - prefilling_G, 0.0),
        "prefilling": prefilling_G,
        "sequences": part.tokens.last_G,
    }
    grouped: dict[RowsOf, FloatArray] = {rows: kernels.grouped(each_G) for rows, each_G in home.items()}
    for attention, rows in layout.attention.items():
        seconds_XG[rows] += kernels.between("attention", grouped, attention)
    for phase in ("router", "shared_expert", "dense"):
        if phase in layout.rows:
            seconds_XG[layout.rows[phase]] += kernels.between(phase, home)
    if "experts" in layout.rows:
        arrived: dict[RowsOf, Any] = {"served": work.served_LG, "unique": work.unique_LG}
        seconds_XG[layout.rows["experts"]] += kernels.between("experts", arrived)
    if ("other", -1) in layout.keys:
        seconds_XG[-1] += kernels.between("other", home)


def _launched_by_the_host(tokens: Home, graph_sizes: Sequence[int] | None) -> bool:
    """Whether a step replays no graph: one with prefill, and one for whose batch none was captured."""
    largest = max(graph_sizes) if graph_sizes else None
    return bool(tokens.prefilling_G.any()) or (largest is not None and float(tokens.tokens_G.max()) > largest)


def padded(tokens_G: NDArray[Any], graph_sizes: Sequence[int] | None) -> FloatArray:
    """Tokens that each GPU computes: those of the smallest graph that holds the fullest GPU's batch.

    All ranks replay a graph of the same size, or none does (SGLang 0.5, vLLM 0.33: the largest batch of the
    data-parallel ranks decides).

    >>> padded(np.array([3, 5]), [1, 2, 4, 8]).tolist(), padded(np.array([3, 9]), [1, 2, 4, 8]).tolist()
    ([8.0, 8.0], [3.0, 9.0])
    """
    most = tokens_G.max()
    fitting = [size for size in graph_sizes or () if size >= most]
    return np.full(len(tokens_G), min(fitting), np.float64) if fitting else tokens_G.astype(np.float64)
