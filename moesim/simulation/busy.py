"""Seconds of every kernel of a step on each GPU: all that costs time but transfers and fixed costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.kernels import Kernels
from moesim.simulation.part import Part
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
    # Layers differ in routing and, with sliding windows, in attention; the rest is computed once.
    window = {layer: model.attention_context(layer, np.inf) for layer in range(model.layers)}
    attention_s = {
        size: during("attention").attention(
            padded_G, tokens.keys_G(size, prefill=False), tokens.keys_G(size, prefill=True)
        )
        for size in set(window.values())
    }
    router_G = during("router").router(padded_G)
    shared_G = during("shared_expert").shared_expert(padded_G)
    dense_G = during("dense").dense(padded_G)
    experts_LG = part.experts_s(during("experts"), slot_gpu_S)
    row = {layer: i for i, layer in enumerate(model.moe_layers)}
    busy: Busy = {}
    for layer in range(model.layers):
        busy["attention", layer] = attention_s[window[layer]]
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
    return busy


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
