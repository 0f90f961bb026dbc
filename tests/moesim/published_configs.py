"""Configurations of released models, as far as the reader looks at them, with the counts that were published.

Written from the ``config.json`` and the model card of each checkpoint on Hugging Face. Counts are billions of
parameters, total and active, to the digits that the card gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Keys = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A released model.

    Attributes:
        config: keys of its ``config.json``.
        total, active: billions of parameters, as text with the digits that were published.
        beside: ``hf_quant_config.json``, where there is one.
        expected: some fields of the model that must come of it.
    """

    config: Keys
    total: str
    active: str
    beside: Keys | None = None
    expected: Keys | None = None


_BF16 = {"tie_word_embeddings": False, "torch_dtype": "bfloat16"}
_LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_BLOCK_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def _shape(hidden: int, layers: int, heads: int, kv_heads: int, vocab: int) -> Keys:
    return _BF16 | {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }


_DEEPSEEK_V3 = _shape(7168, 61, 128, 128, 129280) | {
    **_LATENT,
    "model_type": "deepseek_v3",
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "q_lora_rank": 1536,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_group": 8,
    "topk_group": 4,
    "num_nextn_predict_layers": 1,
    "quantization_config": _BLOCK_FP8,
}
_KIMI_K2 = _DEEPSEEK_V3 | {
    "model_type": "kimi_k2",
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "vocab_size": 163840,
}
_DELTA = {
    "full_attention_interval": 4,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_value_head_dim": 128,
    "mlp_only_layers": [],
}
_LLAMA4 = _shape(5120, 48, 40, 8, 202048) | {
    "model_type": "llama4_text",
    "head_dim": 128,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 8192,
    "use_qk_norm": True,
    "no_rope_layers": [],
}

PUBLISHED: dict[str, Published] = {
    "DeepSeek-V3.2": Published(
        _DEEPSEEK_V3
        | {"model_type": "deepseek_v32", "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048},
        "671",
        "37",
        expected={"expert_dtype": "fp8"},
    ),
    "DeepSeek-V3-0324-NVFP4": Published(
        {key: value for key, value in _DEEPSEEK_V3.items() if key != "quantization_config"},
        "671",
        "37",
        {
            "producer": {"name": "modelopt"},
            "quantization": {
                "quant_algo": "NVFP4",
                "kv_cache_quant_algo": "FP8",
                "group_size": 16,
                "exclude_modules": ["lm_head", "model.layers.0.self_attn.q_a_proj"],
            },
        },
        {"expert_dtype": "nvfp4", "weight_dtype": "bf16", "kv_dtype": "fp8"},
    ),
    "DeepSeek-V4-Flash": Published(
        _shape(4096, 43, 64, 1, 129280)
        | {
            "model_type": "deepseek_v4",
            "head_dim": 512,
            "qk_rope_head_dim": 64,
            "q_lora_rank": 1024,
            "o_groups": 8,
            "o_lora_rank": 1024,
            "moe_intermediate_size": 2048,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 6,
            "num_hash_layers": 3,
            "sliding_window": 128,
            "index_head_dim": 128,
            "index_n_heads": 64,
            "index_topk": 512,
            "hc_mult": 4,
            "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
            "expert_dtype": "fp4",
            "quantization_config": _BLOCK_FP8,
        },
        "284",
        "13",
        expected={"expert_dtype": "mxfp4", "weight_dtype": "fp8"},
    ),
    "GLM-4.6": Published(
        _shape(5120, 92, 96, 8, 151552)
        | {
            "model_type": "glm4_moe",
            "head_dim": 128,
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "n_routed_experts": 160,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "n_group": 1,
            "topk_group": 1,
            "attention_bias": True,
            "use_qk_norm": True,
        },
        "355",
        "32",
    ),
    "GLM-5": Published(
        _shape(6144, 78, 64, 64, 154880)
        | {
            "model_type": "glm_moe_dsa",
            "head_dim": 64,
            "intermediate_size": 12288,
            "moe_intermediate_size": 2048,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "moe_layer_freq": 1,
            "kv_lora_rank": 512,
            "q_lora_rank": 2048,
            "qk_nope_head_dim": 192,
            "qk_rope_head_dim": 64,
            "v_head_dim": 256,
        },
        "744",
        "40",
    ),
    "Kimi-K2-Instruct": Published(_KIMI_K2, "1000", "32"),
    "Kimi-K2.5": Published(
        {
            "model_type": "kimi_k25",
            "dtype": "bfloat16",
            "vision_config": {"vt_hidden_size": 1152},
            "text_config": {key: value for key, value in _KIMI_K2.items() if key != "quantization_config"}
            | {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "format": "pack-quantized",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
                    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"],
                    "kv_cache_scheme": None,
                }
            },
        },
        "1000",
        "32",
        expected={"expert_dtype": "int4", "weight_dtype": "bf16"},
    ),
    "Kimi-Linear-48B-A3B": Published(
        _shape(2304, 27, 32, 32, 163840)
        | _LATENT
        | {
            "model_type": "kimi_linear",
            "head_dim": 72,
            "intermediate_size": 9216,
            "moe_intermediate_size": 1024,
            "num_experts": 256,
            "num_experts_per_token": 8,
            "num_shared_experts": 1,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "num_expert_group": 1,
            "topk_group": 1,
            "q_lora_rank": None,
            "mla_use_nope": True,
            "use_grouped_topk": True,
            "linear_attn_config": {
                "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
                "kda_layers": [layer for layer in range(1, 27) if layer % 4],
                "head_dim": 128,
                "num_heads": 32,
                "short_conv_kernel_size": 4,
            },
        },
        "48",
        "3",
    ),
    "MiniMax-M2": Published(
        _shape(3072, 62, 48, 8, 200064)
        | {
            "model_type": "minimax_m2",
            "attn_type_list": [1] * 62,
            "head_dim": 128,
            "intermediate_size": 1536,
            "mlp_intermediate_size": 8192,
            "num_local_experts": 256,
            "num_experts_per_tok": 8,
            "shared_intermediate_size": 0,
            "shared_moe_mode": "sigmoid",
            "mtp_transformer_layers": 1,
            "num_mtp_modules": 3,
            "qk_norm_type": "per_layer",
            "use_routing_bias": True,
            "quantization_config": _BLOCK_FP8,
        },
        "230",
        "10",
    ),
    "MiniMax-Text-01": Published(
        _shape(6144, 80, 64, 8, 200064)
        | {
            "model_type": "minimax_text_01",
            "attn_type_list": [int(layer % 8 == 7) for layer in range(80)],
            "head_dim": 128,
            "intermediate_size": 9216,
            "num_local_experts": 32,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 0,
            "layernorm_full_attention_alpha": 3.5565588200778455,
        },
        "456",
        "45.9",
    ),
    "Qwen3-Next-80B-A3B": Published(
        _shape(2048, 48, 16, 2, 151936)
        | _DELTA
        | {
            "model_type": "qwen3_next",
            "intermediate_size": 5120,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "decoder_sparse_step": 1,
            "linear_num_value_heads": 32,
            "use_sliding_window": False,
        },
        "80",
        "3",
    ),
    "Qwen3.5-397B-A17B": Published(
        {
            "model_type": "qwen3_5_moe",
            "tie_word_embeddings": False,
            "vision_config": {"hidden_size": 1152},
            "text_config": _shape(4096, 60, 32, 2, 248320)
            | _DELTA
            | {
                "model_type": "qwen3_5_moe_text",
                "attn_output_gate": True,
                "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 15,
                "linear_num_value_heads": 64,
                "moe_intermediate_size": 1024,
                "shared_expert_intermediate_size": 1024,
                "num_experts": 512,
                "num_experts_per_tok": 10,
                "mtp_num_hidden_layers": 1,
            },
        },
        "397",
        "17",
    ),
    "Qwen3-VL-235B-A22B": Published(
        {
            "model_type": "qwen3_vl_moe",
            "vision_config": {"hidden_size": 1152},
            "text_config": _shape(4096, 94, 64, 4, 151936)
            | {
                "model_type": "qwen3_vl_moe_text",
                "head_dim": 128,
                "intermediate_size": 12288,
                "moe_intermediate_size": 1536,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            },
        },
        "235",
        "22",
    ),
    "gpt-oss-120b": Published(
        _shape(2880, 36, 64, 8, 201088)
        | {
            "model_type": "gpt_oss",
            "head_dim": 64,
            "intermediate_size": 2880,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "experts_per_token": 4,
            "initial_context_length": 4096,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 18,
            "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        },
        "116.8",
        "5.1",
        expected={"expert_dtype": "mxfp4", "weight_dtype": "bf16"},
    ),
    "Llama-4-Scout": Published(
        {
            "model_type": "llama4",
            "text_config": _LLAMA4 | {"num_local_experts": 16, "interleave_moe_layer_step": 1},
            "vision_config": {"hidden_size": 1408},
        },
        "109",
        "17",
    ),
    "Llama-4-Maverick": Published(
        {
            "model_type": "llama4",
            "text_config": _LLAMA4 | {"num_local_experts": 128, "interleave_moe_layer_step": 2},
            "vision_config": {"hidden_size": 1408},
        },
        "400",
        "17",
    ),
    "ERNIE-4.5-21B-A3B": Published(
        _shape(2560, 28, 20, 4, 103424)
        | {
            "model_type": "ernie4_5_moe",
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "moe_num_experts": 64,
            "moe_num_shared_experts": 2,
            "moe_k": 6,
            "moe_gate": "topk",
            "moe_capacity": [64, 64, 64],
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
            "tie_word_embeddings": True,
        },
        "21",
        "3",
    ),
    "Hunyuan-A13B": Published(
        _shape(4096, 32, 32, 8, 128167)
        | {
            "model_type": "hunyuan_v1_moe",
            "head_dim": 128,
            "attention_head_dim": 128,
            "intermediate_size": 3072,
            "moe_intermediate_size": [3072] * 32,
            "num_experts": 64,
            "moe_topk": [8] * 32,
            "num_shared_expert": [1] * 32,
            "moe_layer_num_skipped": 0,
            "use_cla": False,
            "cla_share_factor": 2,
            "use_mla": False,
            "use_mixed_mlp_moe": True,
            "tie_word_embeddings": True,
        },
        "80",
        "13",
    ),
    "Granite-4.0-H-Small": Published(
        _shape(4096, 40, 32, 8, 100352)
        | {
            "model_type": "granitemoehybrid",
            "intermediate_size": 768,
            "shared_intermediate_size": 1536,
            "num_local_experts": 72,
            "num_experts_per_tok": 10,
            "layer_types": ["attention" if layer in (5, 15, 25, 35) else "mamba" for layer in range(40)],
            "mamba_n_heads": 128,
            "mamba_n_groups": 1,
            "mamba_d_state": 128,
            "mamba_d_head": 64,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_chunk_size": 256,
            "position_embedding_type": "nope",
            "tie_word_embeddings": True,
        },
        "32",
        "9",
    ),
    "Jamba-1.5-Mini": Published(
        _shape(4096, 32, 32, 8, 65536)
        | {
            "model_type": "jamba",
            "intermediate_size": 14336,
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_dt_rank": 256,
            "num_logits_to_keep": 1,
        },
        "52",
        "12",
    ),
    "Phi-3.5-MoE": Published(
        _shape(4096, 32, 32, 8, 32064)
        | {
            "model_type": "phimoe",
            "intermediate_size": 6400,
            "num_local_experts": 16,
            "num_experts_per_tok": 2,
            "sliding_window": 131072,
        },
        "41.9",
        "6.6",
    ),
    "DBRX": Published(
        {
            "model_type": "dbrx",
            "d_model": 6144,
            "n_heads": 48,
            "n_layers": 40,
            "vocab_size": 100352,
            "max_seq_len": 32768,
            "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000},
            "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
            "torch_dtype": "bfloat16",
            "tie_word_embeddings": False,
        },
        "132",
        "36",
    ),
    "Arctic": Published(
        _shape(7168, 35, 56, 8, 32000)
        | {
            "model_type": "arctic",
            "intermediate_size": 4864,
            "num_local_experts": 128,
            "num_experts_per_tok": 2,
            "moe_layer_frequency": 1,
            "parallel_attn_mlp_res": True,
            "use_residual": True,
            "moe_eval_capacity_factor": 1,
            "moe_token_dropping": True,
        },
        "480",
        "17",
    ),
    "Ling-flash-2.0": Published(
        _shape(4096, 32, 32, 4, 157184)
        | {
            "model_type": "bailing_moe_v2",
            "head_dim": 128,
            "intermediate_size": 9216,
            "moe_intermediate_size": 1024,
            "num_experts": 256,
            "num_shared_experts": 1,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 1,
            "n_group": 8,
            "topk_group": 4,
            "moe_router_enable_expert_bias": True,
            "use_qk_norm": True,
        },
        "100",
        "6.1",
    ),
}
