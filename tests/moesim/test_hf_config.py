"""Hugging Face configs: each family reads to the preset of the same model; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moesim.errors import SpecError
from moesim.spec.hf_config import read_hf_config
from moesim.spec.model import Model
from moesim.spec.presets import load_model
from moesim.spec.yaml_source import Source

NOWHERE = Source(None, None, {})

# The keys that matter of published config.json files, by the preset that describes the same model.
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 32000,
    },
    "qwen1.5-moe-a2.7b": {
        "model_type": "qwen2_moe",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "decoder_sparse_step": 1,
        "max_window_layers": 21,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 151936,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "mlp_only_layers": [],
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 151936,
    },
    "olmoe-1b-7b": {
        "model_type": "olmoe",
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 50304,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "n_group": 8,
        "topk_group": 4,
        "num_nextn_predict_layers": 1,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 129280,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "head_dim": 64,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        "tie_word_embeddings": False,
        "vocab_size": 201088,
    },
    "glm-4.5": {
        "model_type": "glm4_moe",
        "hidden_size": 5120,
        "head_dim": 128,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 92,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "n_routed_experts": 160,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 1,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 151552,
    },
}
CONFIGS["kimi-k2"] = CONFIGS["deepseek-v3"] | {
    "model_type": "kimi_k2",
    "num_attention_heads": 64,
    "n_routed_experts": 384,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "vocab_size": 163840,
}


def written(folder: Path, config: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("preset", CONFIGS)
def test_a_config_reads_to_the_preset_of_its_model(preset: str, tmp_path: Path) -> None:
    read = read_hf_config(written(tmp_path, CONFIGS[preset]))
    own = {"name", "source", "active_includes"}
    expected = load_model(preset, NOWHERE)
    assert read.model_dump(exclude=own) == expected.model_dump(exclude=own)


def test_a_model_is_named_after_its_folder_and_found_by_path_or_folder(tmp_path: Path) -> None:
    folder = tmp_path / "OLMoE-1B-7B"
    folder.mkdir()
    path = written(folder, CONFIGS["olmoe-1b-7b"])
    scenario = Source(None, str(tmp_path / "scenario.yaml"), {})
    models = [load_model(name, scenario) for name in ("OLMoE-1B-7B/config.json", "./OLMoE-1B-7B", str(path))]
    assert models == [read_hf_config(path)] * 3
    assert models[0].name == "OLMoE-1B-7B"
    changed = load_model({"base": "OLMoE-1B-7B/config.json", "kv_dtype": "fp8"}, scenario)
    assert changed == models[0].model_copy(update={"kv_dtype": "fp8"})


def changed(preset: str, folder: Path, **changes: Any) -> Model:
    config = {key: value for key, value in (CONFIGS[preset] | changes).items() if value != "absent"}
    return read_hf_config(written(folder, config))


def test_dense_layers_that_lead_or_alternate_are_kept(tmp_path: Path) -> None:
    leading = changed("qwen3-30b-a3b", tmp_path, mlp_only_layers=[0, 1])
    assert (leading.dense_layers, leading.dense_width) == ((0, 1), 6144)
    alternating = changed("qwen3-30b-a3b", tmp_path, decoder_sparse_step=2)
    assert alternating.moe_layers == tuple(range(1, 48, 2))
    scattered = changed("qwen3-30b-a3b", tmp_path, mlp_only_layers=[3, 7])
    assert scattered.dense_layers == (3, 7)


def test_windows_are_kept(tmp_path: Path) -> None:
    everywhere = changed("mixtral-8x7b", tmp_path, sliding_window=4096)
    assert everywhere.attention_context(5, 1e5) == 4096
    nowhere = changed("gpt-oss-20b", tmp_path, sliding_window=None)
    assert nowhere.attention_context(0, 1e5) == 1e5
    default = changed("gpt-oss-20b", tmp_path, layer_types="absent")
    assert [default.attention_context(layer, 1e5) for layer in (0, 1)] == [128, 1e5]
    all_slide = changed("gpt-oss-20b", tmp_path, layer_types=["sliding_attention"] * 24)
    assert all_slide.attention_context(1, 1e5) == 128


def test_dtypes_follow_torch_dtype_and_quantisation(tmp_path: Path) -> None:
    half = changed("mixtral-8x7b", tmp_path, torch_dtype="float16")
    assert {half.weight_dtype, half.expert_dtype, half.kv_dtype, half.activation_dtype} == {"fp16"}
    new_key = changed("mixtral-8x7b", tmp_path, torch_dtype="absent", dtype="float32")
    assert new_key.weight_dtype == "fp32"
    awq = changed("mixtral-8x7b", tmp_path, quantization_config={"quant_method": "awq", "bits": 4})
    assert (awq.weight_dtype, awq.expert_dtype, awq.kv_dtype) == ("int4", "int4", "bf16")


def test_a_dense_model_is_called_one(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32}')
    with pytest.raises(SpecError, match=r"model_type: speaks of no experts: a dense .*\(got 'llama'\)"):
        read_hf_config(file)


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("mixtral-8x7b", {"model_type": "mixtrall"}, "model_type: known: mixtral, phimoe,"),
        ("mixtral-8x7b", {"model_type": "llama"}, "model_type: known: mixtral, phimoe"),
        ("mixtral-8x7b", {"model_type": "absent"}, "model_type: is missing; write the model's fields inline"),
        ("mixtral-8x7b", {"model_type": 3}, "model_type: must be text (got 3)"),
        ("mixtral-8x7b", {"num_local_experts": "absent"}, "num_experts: is missing (or num_local_experts,"),
        ("mixtral-8x7b", {"hidden_size": "4096"}, "hidden_size: must be a whole number (got '4096')"),
        ("mixtral-8x7b", {"hidden_size": True}, "hidden_size: must be a whole number (got True)"),
        ("mixtral-8x7b", {"hidden_size": -1}, "hidden_size: must be a whole number (got -1)"),
        ("mixtral-8x7b", {"hidden_size": 0}, "hidden: must be at least 1 (got 0)"),
        ("mixtral-8x7b", {"num_attention_heads": 0}, "num_attention_heads: must be at least 1 (got 0)"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "experts.top_k: must be at most count (8) (got 9)"),
        ("mixtral-8x7b", {"tie_word_embeddings": "no"}, "tie_word_embeddings: must be true or false"),
        ("mixtral-8x7b", {"torch_dtype": "int3"}, "torch_dtype: must be one of bfloat16, float16, float32"),
        ("mixtral-8x7b", {"quantization_config": 8}, "quantization_config: must be a mapping (got 8)"),
        (
            "mixtral-8x7b",
            {"quantization_config": {"quant_method": "hqq"}},
            "quantization_config.quant_method: must be one of fp8, mxfp4, gptq, awq, modelopt, comp",
        ),
        (
            "mixtral-8x7b",
            {"quantization_config": {"quant_method": "gptq", "bits": 3}},
            "quantization_config.bits: must be 4 or 8 (got 3)",
        ),
        ("qwen3-30b-a3b", {"mlp_only_layers": 3}, "mlp_only_layers: must be a list (got 3)"),
        (
            "qwen1.5-moe-a2.7b",
            {"use_sliding_window": True},
            "max_window_layers: sliding windows of some layers",
        ),
        ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq: only 1 or a list is known here"),
        ("deepseek-v3", {"kv_lora_rank": None}, "kv_lora_rank: is missing"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"] * 2}, "layer_types: must have 24 entries, one"),
        ("gpt-oss-20b", {"layer_types": ["odd"] * 24}, "layer_types: only sliding_attention, full_attention"),
        ("mixtral-8x7b", {"use_moe_shortcut": True}, "use_moe_shortcut: changes the architecture in a way"),
        ("mixtral-8x7b", {"attention_stride": 4}, "attention_stride: changes the architecture"),
        ("mixtral-8x7b", {"num_local_experts": [8, 4]}, "num_local_experts: differs from layer to layer"),
        ("gpt-oss-20b", {"num_hidden_layers": 10**9}, "num_hidden_layers: must be from 1 to 4096"),
    ],
)
def test_what_is_refused_names_its_key(
    preset: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        changed(preset, tmp_path, **changes)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"a": 1,\n"b" 2}', ":3: is not valid JSON: Expecting ':' delimiter"),
        ('{"a": 1, "a": 2}', ": a: duplicate key"),
        (r'{"\ud800\n": 1, "\ud800\n": 2}', r": '\ud800\n': duplicate key"),
        ("[1]", ": must be a JSON object"),
        ("", ":1: is not valid JSON"),
        ("[" * 500_000, ": is not JSON that can be read"),
        ("9" * 5000, ": is not JSON that can be read"),
    ],
)
def test_broken_json_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_hf_config(path)
    assert str(caught.value).startswith(f"{path}{message}")
