"""Families of Hugging Face configs: what each of their model types calls its layers, attention and experts.

The keys are those of the modelling code of transformers 5 (``models/<model_type>``) and, for models whose
code comes with the checkpoint, of that code; both spellings are read where a family changed them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from moesim.spec.hf_keys import WAY_OUT, Config
from moesim.spec.hf_layers import (
    Fields,
    after_dense,
    attentions,
    experts,
    gated_delta,
    grouped,
    indexed,
    latent,
    linear,
    mamba1,
    mamba2,
    moe_layers,
    params,
    with_groups,
    with_shared,
)

Family = Callable[[Config], Fields]
"""From a config to the fields of a model that are the family's own."""

_SLIDING, _FULL, _LINEAR = "sliding_attention", "full_attention", "linear_attention"


def _every_layer(config: Config, width: str = "intermediate_size") -> Fields:
    """Grouped attention and experts in every layer."""
    return {
        "attention": grouped(config, window=config.optional("sliding_window")),
        "experts": experts(config, width),
    }


def _qwen(config: Config) -> Fields:
    layers, step = config.layers, config.count("decoder_sparse_step", default=1)
    dense = config.indices("mlp_only_layers")
    moe = [layer for layer in range(layers) if layer not in dense and step and (layer + 1) % step == 0]
    if (
        config.flag("use_sliding_window", False)
        and config.count("max_window_layers", default=layers) < layers
    ):
        raise config.error(
            f"sliding windows of some layers are not known here; {WAY_OUT}", "max_window_layers"
        )
    for key in ("sliding_window", "max_window_layers", "layer_types"):
        config.get(key)  # off, as has been seen
    shared = config.count("shared_expert_intermediate_size", default=0)
    return {
        "attention": grouped(config),
        "experts": experts(config, shared_width=shared),
        **moe_layers(config, moe),
    }


def _qwen_hybrid(config: Config) -> Fields:
    """Qwen3-Next and Qwen3.5: of each few layers one has full attention, with a gate as wide as its heads."""
    kinds = config.kinds("layer_types")
    every = config.count("full_attention_interval", default=4)
    gated = config.flag("attn_output_gate", True)
    if not kinds:
        kinds = [_LINEAR if not every or (layer + 1) % every else _FULL for layer in range(config.layers)]

    def full() -> Fields:
        plain, hidden = grouped(config), config.count("hidden_size")
        gate = hidden * plain["heads"] * plain["head_dim"]
        return plain | ({"projections": params(plain, hidden) + gate} if gated else {})

    known = {_LINEAR: lambda: gated_delta(config), _FULL: full}
    fields = _qwen(config)
    return fields | attentions(config, kinds, known)


def _deepseek(config: Config, attention: Callable[[Config], Fields] = latent) -> Fields:
    found = with_groups(config, with_shared(config, experts(config)))
    config.get("layer_types")  # all of one kind
    return {
        "attention": attention(config),
        "experts": found,
        **moe_layers(config, after_dense(config)),
    }


def _deepseek_v32(config: Config, index_heads: int) -> Fields:
    config.only("indexer_types", ["full"] * config.layers)
    return _deepseek(config, partial(indexed, heads=index_heads))


def _deepseek_v4(config: Config) -> Fields:
    """DeepSeek-V4: compressed attention beside a window, keys that are values, grouped output projections."""
    hidden, heads, head = (config.count(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    rank, groups, out = (config.count(key) for key in ("q_lora_rank", "o_groups", "o_lora_rank"))
    config.only("num_key_value_heads", 1)
    index_heads, index_dim = config.count("index_n_heads"), config.count("index_head_dim")
    plain = hidden * rank + rank * heads * head + hidden * head + heads * head * out + groups * out * hidden
    window, best = config.count("sliding_window"), config.count("index_topk")
    rates = config.get("compress_rates") or {}
    sparse = rates.get("compressed_sparse_attention", 4) if isinstance(rates, dict) else 4
    heavy = rates.get("heavily_compressed_attention", 128) if isinstance(rates, dict) else 128
    base = {"kind": "gqa", "heads": heads, "kv_heads": 1, "head_dim": head, "shared_kv": True}
    base |= {"window": window}

    def compressed_sparse() -> Fields:
        compressor = hidden * 4 * head
        index = hidden * (4 * index_dim + index_heads) + rank * index_heads * index_dim
        own = {"index_heads": index_heads, "index_dim": index_dim, "index_top_k": best, "compress": sparse}
        return base | own | {"projections": plain + compressor + index}

    known = {
        _SLIDING: lambda: base | {"projections": plain},
        "compressed_sparse_attention": compressed_sparse,
        "heavily_compressed_attention": lambda: (
            base | {"compress": heavy, "projections": plain + hidden * 2 * head}
        ),
    }
    found = with_shared(config, experts(config))
    for key in ("mlp_layer_types", "num_hash_layers", "hc_mult", "qk_rope_head_dim"):
        config.get(key)  # layers that route by the token's hash have experts too; hyper-connections are small
    fields = {"experts": found, **moe_layers(config, range(config.layers), "moe_intermediate_size")}
    return fields | attentions(config, _v4_kinds(config), known)


def _v4_kinds(config: Config) -> list[str]:
    """The attention of each layer: named, by its ratio, or in turn after two heavily compressed ones."""
    ratios = {0: _SLIDING, 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    named, given = config.kinds("layer_types"), config.by_layer("compress_ratios")
    if named:
        return named
    if any(ratio not in list(ratios) for ratio in given):
        raise config.error("must be of 0, 4 and 128", "compress_ratios")
    if given:
        return [ratios[ratio] for ratio in given]
    return [ratios[4 if layer > 1 and layer % 2 else 128] for layer in range(config.layers)]


def _glm4(config: Config) -> Fields:
    found = with_groups(config, with_shared(config, experts(config)))
    return {"attention": grouped(config), "experts": found, **moe_layers(config, after_dense(config))}


def _gpt_oss(config: Config) -> Fields:
    window = config.optional("sliding_window")
    kinds = config.kinds("layer_types")
    found = experts(config, "intermediate_size")
    if window is None:
        return {"attention": grouped(config), "experts": found}
    if not kinds:  # transformers' default: sliding and full in turn
        kinds = [_FULL if layer % 2 else _SLIDING for layer in range(config.layers)]
    known = {_SLIDING: lambda: grouped(config, window=window), _FULL: lambda: grouped(config)}
    return {"experts": found, **attentions(config, kinds, known)}


def _windows(config: Config) -> Fields:
    """Grouped attention that slides in some layers."""
    kinds, window = config.kinds("layer_types"), config.optional("sliding_window")
    if not kinds or window is None:
        return {"attention": grouped(config)}
    known = {_SLIDING: lambda: grouped(config, window=window), _FULL: lambda: grouped(config)}
    return attentions(config, kinds, known)


def _minimax_m2(config: Config) -> Fields:
    if any(kind != 1 for kind in config.by_layer("attn_type_list")):
        raise config.error(f"only full attention, 1, is known here; {WAY_OUT}", "attn_type_list")
    config.only("shared_intermediate_size", 0)
    config.get("mlp_intermediate_size")  # of dense layers, of which there are none
    return _every_layer(config)


def _minimax(config: Config) -> Fields:
    """MiniMax-Text-01 and M1: lightning attention with a gated output in most layers."""
    kinds = config.kinds("layer_types") or [
        _FULL if each == 1 else _LINEAR for each in config.by_layer("attn_type_list")
    ]
    if not kinds:
        raise config.error(f"is missing; {WAY_OUT}", "layer_types")
    config.only("shared_intermediate_size", 0)
    for key in ("block_size", "attention_type", "mlp_intermediate_size"):
        config.get(key)

    def lightning() -> Fields:
        plain, hidden = grouped(config), config.count("hidden_size")
        wide = plain["heads"] * plain["head_dim"]
        return linear(plain["heads"], 5 * hidden * wide, wide * plain["head_dim"])

    known = {_FULL: lambda: grouped(config), _LINEAR: lightning}
    return {"experts": experts(config, "intermediate_size"), **attentions(config, kinds, known)}


def _llama4(config: Config) -> Fields:
    """Chunks of a fixed size in most layers; one shared expert, as wide as the routed ones."""
    layers, step = config.layers, config.count("interleave_moe_layer_step", default=1)
    moe = config.indices("moe_layers") or [i for i in range(layers) if step and (i + 1) % step == 0]
    found = experts(config, "intermediate_size")
    interval = config.count("no_rope_layer_interval", default=4) or 4
    whole = config.by_layer("no_rope_layers")
    kinds = config.kinds("layer_types")
    if not kinds:
        rotates = whole or [(layer + 1) % interval for layer in range(layers)]
        kinds = ["chunked_attention" if each else _FULL for each in rotates]
    chunk = config.optional("attention_chunk_size")
    known = {"chunked_attention": lambda: grouped(config, window=chunk), _FULL: lambda: grouped(config)}
    return {
        "experts": found | {"shared_width": found["width"]},
        **moe_layers(config, moe, "intermediate_size_mlp"),
        **(attentions(config, kinds, known) if chunk is not None else {"attention": grouped(config)}),
    }


def _ernie(config: Config) -> Fields:
    layers, every = config.layers, config.count("moe_layer_interval", default=1) or 1
    first, last = config.count("moe_layer_start_index", default=0), config.get("moe_layer_end_index")
    config.only("moe_use_size_all", False)
    end = layers - 1 if last in (None, -1) else config.count("moe_layer_end_index")
    kinds = config.kinds("mlp_layer_types")
    moe = [i for i in range(layers) if first <= i <= end and (i + 1) % every == 0]
    if kinds:
        moe = [layer for layer, kind in enumerate(kinds) if kind != "dense"]
    found = with_shared(config, experts(config))
    return {"attention": grouped(config), "experts": found, **moe_layers(config, moe)}


def _hunyuan(config: Config) -> Fields:
    config.only("use_cla", False)
    config.only("use_mla", False)
    config.only("use_mixed_mlp_moe", True)
    config.only("group_limited_greedy", False)
    for key in ("cla_share_factor", "num_media_embeds", "dense_list"):
        config.get(key)
    width = "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"
    found = with_shared(config, experts(config, width))
    return {
        "attention": grouped(config),
        "experts": found,
        **moe_layers(config, range(config.count("moe_layer_num_skipped", default=0), config.layers)),
    }


def _hunyuan_v3(config: Config) -> Fields:
    found = with_shared(config, experts(config))
    return {"attention": grouped(config), "experts": found, **moe_layers(config, after_dense(config))}


def _granite(config: Config) -> Fields:
    """Granite 3 and 4: Mamba 2 where ``layer_types`` says so, a shared expert of its own width."""
    shared = config.count("shared_intermediate_size", default=0)
    found = experts(config, "intermediate_size", shared_width=shared)
    kinds = config.kinds("layer_types")
    for key in ("num_attention_heads", "num_key_value_heads", "mamba_expand"):
        config.get(key)  # of kinds of layers that there may not be
    known = dict.fromkeys(("mamba", _LINEAR), lambda: mamba2(config))
    known |= dict.fromkeys(("attention", _FULL), lambda: grouped(config))
    if not kinds:
        return {"attention": grouped(config), "experts": found}
    return {"experts": found, **attentions(config, kinds, known)}


def _jamba(config: Config) -> Fields:
    layers = range(config.layers)
    period, offset = config.count("expert_layer_period"), config.count("expert_layer_offset")
    every, first = config.count("attn_layer_period"), config.count("attn_layer_offset")
    if not period or not every:
        raise config.error("must be at least 1", "attn_layer_period" if period else "expert_layer_period")
    config.get("layer_types")
    config.get("layers_block_type")
    kinds = ["attention" if layer % every == first else "mamba" for layer in layers]
    known = {"attention": lambda: grouped(config), "mamba": lambda: mamba1(config)}
    moe = [layer for layer in layers if layer % period == offset]
    return {
        "experts": experts(config, "intermediate_size"),
        **moe_layers(config, moe),
        **attentions(config, kinds, known),
    }


def _dbrx(config: Config) -> Fields:
    attention, ffn = config.inside("attn_config"), config.inside("ffn_config")
    if attention is None or ffn is None:
        missing = "attn_config" if attention is None else "ffn_config"
        raise config.error(f"is missing; {WAY_OUT}", missing)
    heads, hidden = config.count("n_heads"), config.count("d_model")
    config.get("num_key_value_heads")  # as attn_config says
    return {
        "hidden": hidden,
        "attention": {
            "kind": "gqa",
            "heads": heads,
            "kv_heads": attention.count("kv_n_heads", default=heads),
            "head_dim": hidden // max(heads, 1),
        },
        "experts": {
            "count": ffn.count("moe_num_experts"),
            "top_k": ffn.count("moe_top_k"),
            "width": ffn.count("ffn_hidden_size"),
        },
    }


def _arctic(config: Config) -> Fields:
    """A dense network beside the experts of every layer, as wide as the model: a shared expert."""
    config.only("parallel_attn_mlp_res", True)
    config.only("moe_layer_frequency", 1)
    config.get("use_residual")
    found = experts(config, "intermediate_size")
    return {"attention": grouped(config), "experts": found | {"shared_width": config.count("hidden_size")}}


def _bailing(config: Config) -> Fields:
    """Ling 1 and 2."""
    config.only("use_sliding_window", False)
    for key in ("sliding_window", "max_window_layers", "moe_shared_expert_intermediate_size"):
        config.get(key)
    found = with_groups(config, with_shared(config, experts(config)))
    return {"attention": grouped(config), "experts": found, **moe_layers(config, after_dense(config))}


def _delta_and_latent(config: Config, low_rank: bool) -> Fields:
    """Kimi Delta Attention (arXiv 2510.26692) in most layers, latent attention in others.

    Args:
        low_rank: whether decay and output gate are products of two narrow matrices (Kimi Linear) or one wide
            matrix each (Ling 2.5).
    """
    kinds = config.kinds("layer_types")
    inside = config.inside("linear_attn_config")
    if inside is not None:  # of the checkpoint's own code, where layers count from 1
        delta_layers = inside.indices("kda_layers")
        kinds = [_LINEAR if layer + 1 in delta_layers else _FULL for layer in range(config.layers)]
    if not kinds:
        raise config.error(f"is missing; {WAY_OUT}", "layer_types")
    for key in (
        "layer_group_size",
        "head_dim",
        "mla_use_nope",
        "use_grouped_topk",
        "kda_lower_bound",
        "short_conv_kernel_size",
        "kda_safe_gate",
    ):
        config.get(key)

    def delta() -> Fields:
        hidden, own = config.count("hidden_size"), inside or config
        heads, head = own.count("linear_num_heads", "num_heads"), own.count("linear_head_dim", "head_dim")
        wide, taps = heads * head, own.count("linear_conv_kernel_dim", "short_conv_kernel_size")
        gate = hidden * head + head * wide if low_rank else hidden * wide
        weights = 4 * hidden * wide + 2 * gate + hidden * heads
        weights += 3 * wide * taps
        return linear(heads, weights, wide * head)

    known = {_LINEAR: delta, _FULL: lambda: latent(config)}
    found = with_groups(config, with_shared(config, experts(config)))
    return {
        "experts": found,
        **moe_layers(config, after_dense(config)),
        **attentions(config, kinds, known),
    }


def _some_windows(config: Config) -> Fields:
    """Experts after some dense layers, and attention that slides in some layers."""
    found = with_groups(config, with_shared(config, experts(config)))
    for key in ("sliding_window_pattern", "max_window_layers", "use_sliding_window"):
        config.get(key)
    return {"experts": found, **moe_layers(config, after_dense(config)), **_windows(config)}


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "mixtral": _every_layer,
        "phimoe": _every_layer,
        "minimax_m2": _minimax_m2,
        "minimax": _minimax,
        "minimax_m1": _minimax,
        "minimax_text_01": _minimax,
        "olmoe": _every_layer,
        "flex_olmo": _every_layer,
        "qwen2_moe": _qwen,
        "qwen3_moe": _qwen,
        "qwen3_vl_moe": _qwen,
        "qwen3_vl_moe_text": _qwen,
        "qwen3_omni_moe_text": _qwen,
        "qwen3_next": _qwen_hybrid,
        "qwen3_5_moe": _qwen_hybrid,
        "qwen3_5_moe_text": _qwen_hybrid,
        "deepseek_v2": _deepseek,
        "deepseek_v3": _deepseek,
        "kimi_k2": _deepseek,
        "kimi_k25": _deepseek,
        "glm4_moe_lite": _deepseek,
        "mistral4": _deepseek,
        "deepseek_v32": partial(_deepseek_v32, index_heads=64),
        "glm_moe_dsa": partial(_deepseek_v32, index_heads=32),
        "deepseek_v4": _deepseek_v4,
        "kimi_linear": partial(_delta_and_latent, low_rank=True),
        "bailing_hybrid": partial(_delta_and_latent, low_rank=False),
        "glm4_moe": _glm4,
        "glm4v_moe": _glm4,
        "glm4v_moe_text": _glm4,
        "solar_open": _glm4,
        "gpt_oss": _gpt_oss,
        "llama4": _llama4,
        "llama4_text": _llama4,
        "ernie4_5_moe": _ernie,
        "hunyuan": _hunyuan,
        "hunyuan_v1_moe": _hunyuan,
        "hy_v3": _hunyuan_v3,
        "granitemoe": _granite,
        "granitemoeshared": _granite,
        "granitemoehybrid": _granite,
        "jamba": _jamba,
        "dbrx": _dbrx,
        "arctic": _arctic,
        "bailing_moe": _bailing,
        "bailing_moe_v2": _bailing,
        "dots1": _some_windows,
        "exaone_moe": _some_windows,
    }
)
"""By ``model_type``."""
