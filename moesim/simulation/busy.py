"""Seconds of every kernel of a step on each GPU: all that costs time but transfers and fixed costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.deployment.batch import StepTokens
from moesim.dispatch.work import Work
from moesim.hardware.kernels import Kernels
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
    work: Work,
    slot_gpu_S: NDArray[np.int32],
    kind_LS: NDArray[np.int16] | None,
    tokens: StepTokens,
    graph_sizes: Sequence[int] | None,
    overlapped: Overlapped,
) -> Busy:
    """What the kernels of one step, or of one micro-batch, take on each GPU.

    Args:
        kernels: the cost model.
        work: what was counted, one row for each MoE layer of the model.
        slot_gpu_S: the GPU of each slot.
        kind_LS: the kind of the expert in each slot; None where there is one kind.
        tokens: what was asked, where it is at home and what it attends to.
        graph_sizes: batch sizes to which all that runs at home is padded.
        overlapped: which phases compute beside transfers.
    """
    model = kernels.model
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
    experts_LG = during("experts").experts(work.tokens_LS, slot_gpu_S, len(padded_G), kind_LS)
    row = {layer: i for i, layer in enumerate(model.moe_layers)}
    busy: Busy = {}
    for layer in range(model.layers):
        busy["attention", layer] = attention_s[model.attention_in(layer)]
        if layer not in row:
            busy["dense", layer] = dense_G
            continue
        busy["router", layer] = router_G
        if model.experts.shared_width:
            busy["shared_expert", layer] = shared_G
        busy["experts", layer] = experts_LG[row[layer]]
    busy["other", -1] = kernels.head(tokens.per_rank(tokens.last_T))
    return busy


def _attention(
    kernels: Kernels, attention: Attention, tokens: StepTokens, padded_G: FloatArray
) -> FloatArray:
    """The attention of one layer: projections, scores, and what indexers and recurrent states add."""
    decode_G, prefill_G = (tokens.keys_G(attention.attended, prefill=prefill) for prefill in (False, True))
    seconds_G = kernels.attention(padded_G, decode_G, prefill_G, attention)
    if attention.index_heads is not None:
        seconds_G = seconds_G + kernels.index(tokens.per_rank(attention.scanned(tokens.keys_T)), attention)
    if attention.kind == "linear":
        sequences_G = tokens.per_rank(tokens.last_T)
        seconds_G = seconds_G + kernels.recurrence(padded_G, sequences_G, attention)
    return seconds_G


def padded(tokens_G: NDArray[np.int64], graph_sizes: Sequence[int] | None) -> FloatArray:
    """Tokens that each GPU computes: those of the smallest graph that holds the fullest GPU's batch.

    All ranks replay a graph of the same size, or none does (SGLang 0.5, vLLM 0.33: the largest batch of the
    data-parallel ranks decides).

    >>> padded(np.array([3, 5]), [1, 2, 4, 8]).tolist(), padded(np.array([3, 9]), [1, 2, 4, 8]).tolist()
    ([8.0, 8.0], [3.0, 9.0])
    """
    most = int(tokens_G.max())
    fitting = [size for size in graph_sizes or () if size >= most]
    return np.full(len(tokens_G), min(fitting), np.float64) if fitting else tokens_G.astype(np.float64)
