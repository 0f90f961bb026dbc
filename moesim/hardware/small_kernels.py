"""Small kernels: what stands between the matrices of a layer, streams whole rows and computes little.

A kernel costs its bytes through memory and a launch. Counted from the layer of DeepSeek-V3 in SGLang
(``srt/models/deepseek_v2.py``) and, for grouped-query attention, of Qwen3-MoE (``srt/models/qwen3_moe.py``);
other servers fuse a few of them and split others. Bytes that a matrix reads and writes are the matrix's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from moesim.spec.attention import INDEX_BYTES, Attention
from moesim.spec.dtypes import DTYPE_BYTES
from moesim.spec.model import Model
from moesim.spec.profile import Phase

RowsOf = Literal["tokens", "decoding", "prefilling", "sequences", "served", "unique"]
"""At home on a GPU: all tokens, those that decode, those of chunks, sequences whose logits are asked for. On
the GPUs of their experts: assignments, and distinct tokens."""

_SCORE, _ASSIGNMENT = 4, 8  # bytes of a score in fp32; of an expert's id in int32 with its weight in fp32

# Logits: made fp32 (2 + 4 bytes), divided by a temperature and made probabilities (4 + 4), drawn from (4).
_SAMPLING_BYTES, _SAMPLING_LAUNCHES = 18, 5


@dataclass(frozen=True)
class SmallKernel:
    """A kernel, or a few of a kind, of each layer (of phase ``other``: of each step).

    Attributes:
        row_bytes: read and written for each row.
        launches: 0 where its rows belong to a kernel that is counted elsewhere.
        attention: in layers of which attention alone, None for all layers.
    """

    name: str
    phase: Phase
    rows: RowsOf
    row_bytes: float
    launches: int = 1
    attention: Attention | None = None


@dataclass(frozen=True)
class Form:
    """In which form rows go from kernel to kernel.

    Attributes:
        inputs, expert_inputs: bytes of a value that enters a matrix at home, and an expert's.
        sent, copy: bytes of a value, and of a whole copy with its scales, on the way out; those of the
            activations where tokens stay.
        travels: whether tokens leave their GPU at all.
        by_slot: whether the transfer kernels quantise rows, lay them out by slot, and sum what comes back.
        arranged: whether the profile counts the laying out itself (``arrange`` of a dispatch mode).
        fused_activation: whether a matrix applies it before it writes.
        tp: GPUs that share the heads of an attention group, each with all of the group's tokens.
    """

    inputs: float
    expert_inputs: float
    sent: float
    copy: float
    travels: bool = True
    by_slot: bool = False
    arranged: bool = False
    fused_activation: bool = False
    tp: int = 1


def small_kernels(model: Model, form: Form) -> tuple[SmallKernel, ...]:
    """Those of a model."""
    return (
        *(
            replace(each, attention=attention)
            for attention in model.attention_layers
            for each in _attention(attention, model, form)
        ),
        *_experts(model, form),
        *(_feed_forward("shared_expert", model, form) if model.experts.shared_width else ()),
        *(_feed_forward("dense", model, form) if model.dense_layers else ()),
        *_step(model),
    )


def _attention(attention: Attention, model: Model, form: Form) -> Iterator[SmallKernel]:
    """Of one attention. What a recurrent one does beside its matrices and its states, shapes do not say."""
    hidden, values = model.hidden, DTYPE_BYTES[model.activation_dtype]
    tp, inputs = form.tp, form.inputs
    heads, stored = attention.heads / tp, attention.kv_values_per_token * attention.kv_share(tp)

    def row(name: str, rows: RowsOf, row_bytes: float, launches: int = 1) -> SmallKernel:
        return SmallKernel(name, "attention", rows, row_bytes, launches)

    yield row("add and norm", "tokens", 4 * hidden * values)
    yield from _quantised("attention", "tokens", hidden, values, inputs)
    if attention.kind == "linear":
        return
    if attention.kind == "mla":
        yield from _latent(attention, heads, values, inputs)
        width = heads * _of(attention.v_head_dim)
    else:
        queries = heads * _of(attention.head_dim)
        width = heads * _of(attention.value_dim or attention.head_dim)
        kept = _of(attention.kv_heads) * attention.kv_share(tp) * _of(attention.head_dim)
        yield row("rotate", "tokens", 2 * values * (queries + kept))
        yield row("queries and outputs of scores", "tokens", values * (queries + width), 0)
    if attention.index_heads is not None:
        indexed = (attention.index_heads + 1) * _of(attention.index_dim)
        yield row("rotate and write the index", "tokens", indexed * (values + INDEX_BYTES))
    yield row("write KV", "tokens", stored * (values + DTYPE_BYTES[model.kv_dtype]))
    yield from _quantised("attention", "tokens", width, values, inputs)


def _latent(attention: Attention, heads: float, values: float, inputs: float) -> Iterator[SmallKernel]:
    """What MLA adds: decoding works in the latent space, prefill on expanded heads (arXiv 2405.04434)."""
    query, rank = attention.q_lora_rank or 0, _of(attention.kv_lora_rank)
    nope, rope = _of(attention.qk_nope_head_dim), _of(attention.qk_rope_head_dim)
    value = _of(attention.v_head_dim)

    def row(name: str, rows: RowsOf, row_values: float, launches: int = 1) -> SmallKernel:
        return SmallKernel(name, "attention", rows, row_values * values, launches)

    yield row("norms of latents", "tokens", 2 * (query + rank), 2 if query else 1)
    if query:
        yield from _quantised("attention", "tokens", query, values, inputs)
    yield row("rotate", "tokens", 2 * (heads + 1) * rope)
    yield row("queries into the latent space", "decoding", heads * (nope + rank))
    yield row("join queries", "decoding", 2 * heads * (rank + rope))
    yield row("queries and outputs of scores", "decoding", heads * (2 * rank + rope), 0)
    yield row("outputs out of it", "decoding", heads * (rank + value))
    yield row("expanded keys and values", "prefilling", rank + heads * (nope + value))
    yield row("join keys", "prefilling", heads * (2 * nope + rope) + rope)
    yield row("inputs and outputs of scores", "prefilling", 2 * heads * (nope + rope + value), 0)


def _experts(model: Model, form: Form) -> Iterator[SmallKernel]:
    """Before, between and behind the matrices of the routed experts."""
    hidden, experts, values = model.hidden, model.experts, DTYPE_BYTES[model.activation_dtype]
    yield SmallKernel("add and norm", "router", "tokens", 4 * hidden * values)
    yield SmallKernel("top-k", "router", "tokens", experts.count * _SCORE + experts.top_k * _ASSIGNMENT)
    yield from _activation("experts", "served", experts.width, values, form.expert_inputs, form)
    arrived: RowsOf = "served" if form.by_slot else "unique"
    yield from _quantised("experts", arrived, hidden, form.sent, form.expert_inputs)
    if form.by_slot:
        return
    yield SmallKernel("order", "router", "tokens", 2 * experts.top_k * _ASSIGNMENT)
    yield from _quantised("router", "tokens", hidden, values, form.sent)
    if form.arranged:
        return
    if form.travels:
        yield SmallKernel("lay out by slot", "experts", "served", 2 * form.copy)
    yield SmallKernel("weighted sum", "experts", "served", hidden * values)
    yield SmallKernel("its results", "experts", "unique", hidden * values, 0)


def _feed_forward(phase: Phase, model: Model, form: Form) -> Iterator[SmallKernel]:
    """A network at home; a shared expert's output joins that of the routed ones."""
    hidden, experts, values = model.hidden, model.experts, DTYPE_BYTES[model.activation_dtype]
    if phase == "dense":
        yield SmallKernel("add and norm", phase, "tokens", 4 * hidden * values)
    yield from _quantised(phase, "tokens", hidden, values, form.inputs)
    width = experts.shared_width if phase == "shared_expert" else model.dense_width or 0
    yield from _activation(phase, "tokens", width, values, form.inputs, form)
    if phase == "shared_expert":
        yield SmallKernel("add", phase, "tokens", 3 * hidden * values)


def _step(model: Model) -> Iterator[SmallKernel]:
    hidden, values = model.hidden, DTYPE_BYTES[model.activation_dtype]
    yield SmallKernel("embedding", "other", "tokens", 2 * hidden * values)
    yield SmallKernel("norm", "other", "tokens", 4 * hidden * values)
    yield SmallKernel("sampling", "other", "sequences", model.vocab * _SAMPLING_BYTES, _SAMPLING_LAUNCHES)


def _activation(
    phase: Phase, rows: RowsOf, width: float, values: float, to: float, form: Form
) -> Iterator[SmallKernel]:
    """Where no matrix has it fused. What it reads, and what is quantised in the end, matrices count.

    Low-latency kernels leave rows in a layout for which activation and quantisation are one kernel.
    """
    if form.fused_activation:
        return
    yield SmallKernel("activation", phase, rows, 0.0)
    if to < values and not (phase == "experts" and form.by_slot):
        yield SmallKernel("quantise", phase, rows, 2 * width * values)


def _quantised(phase: Phase, rows: RowsOf, width: float, values: float, to: float) -> Iterator[SmallKernel]:
    """A row of this width read and written narrower, where it has to be."""
    if to < values:
        yield SmallKernel("quantise", phase, rows, width * (values + to))


def _of(value: int | None) -> int:
    """A field that the kind of attention guarantees."""
    assert value is not None
    return value
