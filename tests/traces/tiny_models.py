"""Tiny random models of transformers' Mixture-of-Experts classes, for the recorder."""

from __future__ import annotations

from typing import Any

EXPERTS, TOP_K, VOCABULARY = 8, 2, 64

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts_per_tok": TOP_K,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LATENT = {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 4,
    "topk_group": 2,
}

# Name of the class's family → MoE layers of the model, and what its config needs beside the common.
FAMILIES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "Mixtral": ((0, 1, 2), {"num_local_experts": EXPERTS}),
    "Qwen2Moe": (
        (1,),
        {
            "num_experts": EXPERTS,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
            "decoder_sparse_step": 2,
        },
    ),
    "Qwen3Moe": ((0, 1, 2), {"num_experts": EXPERTS, "moe_intermediate_size": 8, "head_dim": 8}),
    "Olmoe": ((0, 1, 2), {"num_experts": EXPERTS}),
    "DeepseekV2": ((1, 2), {**_LATENT, "topk_method": "group_limited_greedy", "topk_group": 1}),
    "DeepseekV3": ((1, 2), _LATENT),
    "GptOss": (
        (0, 1, 2),
        {
            "num_local_experts": EXPERTS,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
}


def tiny_model(family: str, seed: int = 0) -> Any:
    """A random ``<family>ForCausalLM`` whose routers differ from token to token."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**_COMMON, **FAMILIES[family][1]})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, module in model.named_modules():
        if "topkrouter" in type(module).__name__.lower():
            torch.nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(len(name)))
            if hasattr(module, "e_score_correction_bias"):
                module.e_score_correction_bias.copy_(torch.linspace(-0.5, 0.5, EXPERTS))
    return model
