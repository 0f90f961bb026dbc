"""Parts that families of Hugging Face configs share: experts, which layers have them, kinds of attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moesim.spec.attention import Attention
from moesim.spec.hf_keys import WAY_OUT, Config
from traces.base.errors import named

Fields = dict[str, Any]

COUNT = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k", "experts_per_token"),
    *("top_k_experts",),
)
SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
_DENSE = ("dense", "mlp")


def experts(config: Config, width: str = "moe_intermediate_size", **more: Any) -> Fields:
    """The routed experts, whose inner width stands under the key ``width``."""
    return {
        "count": config.count(*COUNT),
        "top_k": config.count(*TOP_K),
        "width": config.count(width),
        **more,
    }


def with_shared(config: Config, found: Fields) -> Fields:
    """The experts with so many shared ones, as wide as they are."""
    return found | {"shared_width": config.count(*SHARED, default=0) * found["width"]}


def with_groups(config: Config, found: Fields) -> Fields:
    """The experts in groups, of which a token chooses some first."""
    groups = config.count("n_group", "num_expert_group", default=1)
    return found | {"groups": groups, "top_groups": config.count("topk_group", default=1)}


def moe_layers(config: Config, layers: Iterable[int], dense_width: str = "intermediate_size") -> Fields:
    """Which layers have experts, as short as it can be said, and how wide the others are."""
    found, total = list(layers), config.layers
    fields: Fields
    first = found[0] if found else total
    if found == list(range(first, total)):
        fields = {"first_dense": first}
    elif found == list(range(first, total, first + 1)):
        fields = {"moe_every": first + 1}
    else:
        fields = {"moe_at": found}
    if len(found) < total:
        fields["dense_width"] = config.count(dense_width)
    config.get(dense_width)
    return fields


def after_dense(config: Config, key: str = "first_k_dense_replace", default: int = 0) -> list[int]:
    """The layers after ``key`` dense ones; or as ``mlp_layer_types`` or a list ``moe_layer_freq`` say."""
    first = config.count(key, default=default)
    kinds = config.kinds("mlp_layer_types")
    frequency = config.get("moe_layer_freq")
    if isinstance(frequency, list):
        kinds = ["moe" if each else "dense" for each in config.by_layer("moe_layer_freq")]
    elif frequency not in (None, 1):
        raise config.error(f"only 1 or a list is known here; {WAY_OUT}", "moe_layer_freq")
    if kinds:
        return [layer for layer, kind in enumerate(kinds) if kind not in _DENSE]
    return list(range(first, config.layers))


def grouped(config: Config, heads: str = "num_attention_heads", **more: Any) -> Fields:
    """Grouped-query attention."""
    count, hidden = config.count(heads), config.count("hidden_size")
    if not count:
        raise config.error("must be at least 1", heads)
    return {
        "kind": "gqa",
        "heads": count,
        "kv_heads": config.count("num_key_value_heads", default=count),
        "head_dim": config.count("head_dim", "attention_head_dim", default=hidden // count),
        **more,
    }


def latent(config: Config) -> Fields:
    """Multi-head latent attention, with an indexer where there is one."""
    keys = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    for key in ("head_dim", "qk_head_dim", "num_key_value_heads", "rope_interleave"):
        config.get(key)  # follows from the others
    return {
        "kind": "mla",
        "heads": config.count("num_attention_heads"),
        "q_lora_rank": config.optional("q_lora_rank"),
        **{key: config.count(key) for key in keys},
    }


def indexed(config: Config, heads: int) -> Fields:
    """Latent attention with the indexer of DeepSeek-V3.2: its own queries, keys and weights of heads.

    Args:
        heads: of the indexer, where the config is silent.
    """
    fields = latent(config)
    heads = config.count("index_n_heads", default=heads)
    width = config.count("index_head_dim", default=128)
    hidden, rank = config.count("hidden_size"), fields["q_lora_rank"]
    if rank is None:
        raise config.error(f"an indexer needs it; {WAY_OUT}", "q_lora_rank")
    return fields | {
        "projections": params(fields, hidden) + rank * heads * width + hidden * (width + heads),
        "index_heads": heads,
        "index_dim": width,
        "index_top_k": config.count("index_topk", default=2048),
    }


def params(attention: Fields, hidden: int) -> int:
    """Parameters of an attention that its shapes give."""
    return Attention.model_construct(**attention).params(hidden)


def attentions(config: Config, kinds: Sequence[str], known: dict[str, Callable[[], Fields]]) -> Fields:
    """The attention of each layer, by the name of its kind.

    The commonest kind is the model's ``attention``; the others are listed with their layers. A window that
    every n-th layer lacks is said as ``full_every``.

    Raises:
        SpecError: a kind is not known.
    """
    for layer, kind in enumerate(kinds):
        if kind not in known:
            rule = f"only {', '.join(known)} are known here (layer {layer} has {named([kind])}); {WAY_OUT}"
            raise config.error(rule, "layer_types")
    built = {kind: known[kind]() for kind in dict.fromkeys(kinds)}
    if pattern := _every(kinds, built):
        return {"attention": pattern}
    ((main, _),) = Counter(kinds).most_common(1)
    listed = [
        {"name": kind, "layers": [layer for layer, each in enumerate(kinds) if each == kind], **fields}
        for kind, fields in built.items()
        if kind != main
    ]
    return {"attention": built[main]} | ({"attention_kinds": listed} if listed else {})


def _every(kinds: Sequence[str], built: dict[str, Fields]) -> Fields | None:
    """One attention with a window in all but every n-th layer, where that is what the kinds are."""
    slide = [kind for kind, fields in built.items() if fields.get("window") is not None]
    if len(built) != 2 or len(slide) != 1:
        return None
    (full,) = set(built) - set(slide)
    if built[full] | {"window": built[slide[0]]["window"]} != built[slide[0]]:
        return None
    period = list(kinds).index(full) + 1
    regular = all((kind == full) == ((layer + 1) % period == 0) for layer, kind in enumerate(kinds))
    return built[slide[0]] | {"full_every": period} if regular and period > 1 else None


def mamba1(config: Config) -> Fields:
    """Mamba (arXiv 2312.00752) as Jamba has it: in, convolution, x, dt, A, D, and out."""
    hidden = config.count("hidden_size")
    inner, state = config.count("mamba_expand") * hidden, config.count("mamba_d_state")
    rank = config.get("mamba_dt_rank")
    rank = -(-hidden // 16) if rank in (None, "auto") else config.count("mamba_dt_rank")
    weights = hidden * 2 * inner + inner * (rank + 2 * state) + rank * inner + inner * hidden
    weights += inner * (config.count("mamba_d_conv") + state + 1)
    return linear(config.count("num_attention_heads"), weights, inner * state)


def mamba2(config: Config) -> Fields:
    """Mamba 2 (arXiv 2405.21060): one projection for gate, inputs, B, C and steps; convolution; out."""
    hidden, heads = config.count("hidden_size"), config.count("mamba_n_heads")
    state, groups = config.count("mamba_d_state"), config.count("mamba_n_groups")
    head = config.get("mamba_d_head")
    inner = config.count("mamba_expand") * hidden
    width = inner // max(heads, 1) if head in (None, "auto") else config.count("mamba_d_head")
    mixed = heads * width + 2 * groups * state
    weights = hidden * (heads * width + mixed + heads) + mixed * config.count("mamba_d_conv")
    return linear(heads, weights + heads * width * hidden, heads * width * state)


def gated_delta(config: Config) -> Fields:
    """Gated delta rule (arXiv 2412.06464) as in Qwen3-Next: q, k, v, z; steps and gates; convolution; out."""
    hidden = config.count("hidden_size")
    keys, values = config.count("linear_num_key_heads"), config.count("linear_num_value_heads")
    key, value = config.count("linear_key_head_dim"), config.count("linear_value_head_dim")
    mixed = 2 * keys * key + values * value
    weights = hidden * (mixed + values * value + 2 * values) + values * value * hidden
    weights += mixed * config.count("linear_conv_kernel_dim")
    return linear(values, weights, values * key * value)


def linear(heads: int, projections: int, state: int) -> Fields:
    """A recurrent attention by its parameters, and the values of its state."""
    return {"kind": "linear", "heads": heads, "projections": projections, "state": state}
