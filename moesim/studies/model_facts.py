"""What a model is, as ``moesim presets model`` shows it: parameters, memory by part, kinds of layers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from moesim.spec.attention import INDEX_BYTES, STATE_BYTES, Attention
from moesim.spec.dtypes import DTYPE_BYTES
from moesim.spec.model import Model
from moesim.spec.presets import load_model, preset_names
from moesim.spec.yaml_source import Source
from traces.base.door import is_folder


def model_at(name: str) -> Model:
    """A preset, or what is at a path: a folder or file of a checkpoint, or YAML of our own fields.

    Raises:
        SpecError: there is none, or it cannot be read.
    """
    folder = name not in preset_names("models") and is_folder(Path(name))
    return load_model(f"{name}/" if folder else name, Source(None, None, {}), ("presets model",))


def model_facts(model: Model) -> dict[str, Any]:
    """Parameters, bytes of weights and cache, and the layers by what they are made of."""
    experts = model.experts
    moe, dense = len(model.moe_layers), len(model.dense_layers)
    parameters = {
        "attention": model.all_attention_params,
        "dense": dense * model.dense_params,
        "shared_experts": moe * model.shared_expert_params,
        "routers": moe * model.router_params,
        "experts": model.routed_params,
        "embeddings": model.embedding_params * (1 if model.tied_embeddings else 2),
    }
    weights = asdict(model.weight_bytes(1, slots=experts.count))
    return {
        "name": model.name,
        "source": model.source,
        "hidden": model.hidden,
        "vocab": model.vocab,
        "experts": {"count": experts.count, "top_k": experts.top_k, "width": experts.width}
        | {"shared_width": experts.shared_width, "groups": experts.groups, "top_groups": experts.top_groups},
        "dtypes": {
            "weights": model.weight_dtype,
            "experts": model.expert_dtype,
            "kv": model.kv_dtype,
            "activations": model.activation_dtype,
        },
        "parameters": {"total": model.total_params, "active": model.active_params, "by_part": parameters},
        "weight_bytes": {"total": sum(weights.values()), "by_part": weights},
        "kv_bytes_per_token": sum(
            layers * _kept(each, model) for each, layers in model.attention_layers.items()
        ),
        "state_bytes_per_sequence": sum(
            layers * (each.state or 0) * STATE_BYTES for each, layers in model.attention_layers.items()
        ),
        "layers": _layers(model),
    }


def _kept(attention: Attention, model: Model) -> float:
    """Bytes that one more token of a long context takes in one layer; none where it slides."""
    slides = attention.window is not None and attention.compress is None
    values = 0.0 if slides else attention.kv_values_per_token / (attention.compress or 1)
    index = (attention.index_dim or 0) / (attention.compress or 1)
    return values * DTYPE_BYTES[model.kv_dtype] + index * INDEX_BYTES


def _layers(model: Model) -> list[dict[str, Any]]:
    """Each kind of layer: its attention, its feed-forward network, and which layers are of it."""
    moe = set(model.moe_layers)
    of_kind: dict[tuple[str, str], list[int]] = {}
    for layer in range(model.layers):
        kind = (attention_words(model.attention_in(layer)), "experts" if layer in moe else "dense")
        of_kind.setdefault(kind, []).append(layer)
    return [
        {"attention": attention, "feed_forward": feed_forward, "count": len(layers), "layers": layers}
        for (attention, feed_forward), layers in of_kind.items()
    ]


def attention_words(attention: Attention) -> str:
    """An attention in words: its kind, its heads, and what it attends to."""
    if attention.kind == "linear":
        return f"linear, {attention.heads} heads, state of {attention.state:,} values"
    if attention.kind == "mla":
        text = f"mla, {attention.heads} heads, latent {attention.kv_lora_rank} + {attention.qk_rope_head_dim}"
    else:
        shared = ", keys are values" if attention.shared_kv else ""
        text = f"gqa, {attention.heads} heads, {attention.kv_heads} KV heads of {attention.head_dim}{shared}"
    if attention.window is not None:
        text += f", window {attention.window}"
    if attention.compress is not None:
        text += f", one key for {attention.compress} tokens"
    return text + (f", best {attention.index_top_k} keys" if attention.index_top_k is not None else "")
