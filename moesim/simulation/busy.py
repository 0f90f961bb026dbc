"""Seconds of every kernel of a step on each GPU: all that costs time but transfers and fixed costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.kernels import Kernels
from moesim.hardware.small_kernels import RowsOf
from moesim.simulation.part import Home, Part
from moesim.spec.attention import Attention
from moesim.spec.profile import Phase

FloatArray = NDArray[np.float64]

# By phase and true layer index (-1 for what belongs to the whole step), in program order: [G] seconds.
Busy = dict[tuple[Phase, int], FloatArray]


@dataclass(frozen=True)
class Overlapped:
    """Phases that compute beside transfer kernels, which occupy ``sms`` multiprocessors."""

    phases: frozenset[Phase]
    sms: int


def busy_seconds(
    kernels: Kernels,
    part: Part,
    slot_gpu_S: NDArray[np.int32],
    graph_sizes: Sequence[int] | None,
    overlapped: Overlapped,
) -> Busy:
    """What the kernels of one step, or of one micro-batch, take on each GPU.

    Args:
        kernels: the cost model.
        part: what they work on.
        slot_gpu_S: the GPU of each slot.
        graph_sizes: batch sizes to which all that runs at home is padded.
        overlapped: which phases compute beside transfers.
    """
    model, tokens = kernels.model, part.tokens
    # Where a transfer may run at the same time, its kernels take their multiprocessors.
    beside = kernels.beside(overlapped.sms)

    def during(phase: Phase) -> Kernels:
        return beside if phase in overlapped.phases else kernels

    padded_G = padded(tokens.tokens_G, graph_sizes)
    # Layers differ in routing and, by kinds and windows, in attention; the rest is computed once.
    attention_s = {
        each: _attention(during("attention"), each, tokens, padded_G) for each in model.attention_layers
    }
    router_G = during("router").router(padded_G)
    shared_G = during("shared_expert").shared_expert(padded_G)
    dense_G = during("dense").dense(padded_G)
    experts_LG = part.experts_s(during("experts"), slot_gpu_S)
    row = {layer: i for i, layer in enumerate(model.moe_layers)}
    busy: Busy = {}
    for layer in range(model.layers):
        busy["attention", layer] = attention_s[model.attention_in(layer)]
        if layer not in row:
            busy["dense", layer] = dense_G
            continue
        busy["router", layer] = router_G
        if kernels.links.host:
            # On the lane of the kernels, and before any that could run beside a transfer: a host that waits
            # launches nothing.
            busy["other", layer] = np.zeros(len(padded_G))
        if model.experts.shared_width:
            busy["shared_expert", layer] = shared_G
        busy["experts", layer] = experts_LG[row[layer]]
    busy["other", -1] = kernels.head(tokens.last_G)
    if kernels.small:
        _add_small(busy, kernels, part, padded_G)
    if _launched_by_the_host(tokens, graph_sizes):
        for phase, layer in busy:
            busy[phase, layer] = np.maximum(busy[phase, layer], kernels.hosted_s(phase, layer))
    return busy


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


def _add_small(busy: Busy, kernels: Kernels, part: Part, padded_G: FloatArray) -> None:
    """Add what runs between the matrices."""
    work, prefilling_G = part.work, part.tokens.prefilling_G
    home: dict[RowsOf, FloatArray] = {
        "tokens": padded_G,
        "decoding": np.maximum(padded_G - prefilling_G, 0.0),
        "prefilling": prefilling_G,
        "sequences": part.tokens.last_G,
    }
    grouped: dict[RowsOf, FloatArray] = {rows: kernels.grouped(each_G) for rows, each_G in home.items()}
    model = kernels.model
    row = {layer: i for i, layer in enumerate(model.moe_layers)}
    at_home: dict[tuple[Phase, Attention | None], FloatArray | float] = {}
    for phase, layer in busy:
        if phase == "experts":
            served_G, unique_G = work.served_LG[row[layer]], work.unique_LG[row[layer]]
            added = kernels.between(phase, {"served": served_G, "unique": unique_G})
        elif phase == "other" and layer >= 0:
            continue  # the host that waits
        else:
            own = (phase, model.attention_in(layer) if phase == "attention" else None)
            if own not in at_home:
                at_home[own] = kernels.between(phase, grouped if phase == "attention" else home, layer)
            added = at_home[own]
        busy[phase, layer] = busy[phase, layer] + added


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
