"""Models from the ``config.json`` of a Hugging Face checkpoint.

The keys differ from family to family; each family's function below names its own, as the modelling code of
transformers reads them. What a config cannot say in our terms is refused, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moesim.errors import SpecError
from moesim.spec.base import suggest, validate
from moesim.spec.model import MAX_LAYERS, Model
from moesim.spec.yaml_source import Source, read_text, show_loc

_WAY_OUT = "write the model's fields inline instead"

_Fields = dict[str, Any]


class _Config:
    """One ``config.json``; a missing or mistyped key is reported by its name."""

    def __init__(self, values: Mapping[str, Any], file: Path) -> None:
        self._values, self.file = values, file

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number from 0; ``default`` where the key is absent or null."""
        value = self._values.get(key)
        if value is None:
            value = default
        if value is None:
            raise SpecError(f"is missing; {_WAY_OUT}", file=self.file, field=key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error("must be a whole number", key)
        return value

    def optional(self, key: str) -> int | None:
        """As :meth:`count`; None where the key is absent or null."""
        return None if self._values.get(key) is None else self.count(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error("must be true or false", key)
        return value

    def text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error("must be text", key)
        return value

    def numbers(self, key: str) -> list[Any]:
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error("must be a list", key)
        return value

    def inside(self, key: str) -> _Config | None:
        """The mapping under ``key``, if there is one."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error("must be a mapping", key)
        return _Config({f"{key}.{name}": part for name, part in value.items()}, self.file)

    def error(self, rule: str, key: str) -> SpecError:
        return SpecError(rule, file=self.file, field=key, got=self._values.get(key))


def read_hf_config(path: str | Path) -> Model:
    """The model that a ``config.json`` describes.

    Raises:
        SpecError: unreadable, not JSON, a ``model_type`` that is not known here, a key that is missing, of
            a wrong type, or of a meaning that a :class:`Model` cannot hold.
    """
    file = Path(path)
    text = read_text(file)
    values = _parse(text, file)
    config = _Config(values, file)
    family = config.text("model_type")
    if family is None:
        raise SpecError(f"is missing; {_WAY_OUT}", file=file, field="model_type")
    if family not in _FAMILIES and "expert" not in text and "moe" not in text:
        raise config.error(
            "speaks of no experts: a dense model has nothing to place or balance", "model_type"
        )
    if family not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise config.error(f"{suggest(family, _FAMILIES)}known: {known}; for others {_WAY_OUT}", "model_type")
    fields = {
        "name": file.parent.resolve().name or family,
        "hidden": config.count("hidden_size"),
        "layers": _layers(config),
        "vocab": config.count("vocab_size"),
        "tied_embeddings": config.flag("tie_word_embeddings", False),
        "source": f"{family} config.json",
        **_dtypes(config),
        **_FAMILIES[family](config),
    }
    return validate(Model, fields, source=Source(fields, str(file), {}))


def _parse(text: str, file: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                raise SpecError("duplicate key", file=file, field=show_loc((name,)))
            result[name] = value
        return result

    try:
        values = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise SpecError(f"is not valid JSON: {error.msg}", file=file, line=error.lineno) from error
    except (RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
        raise SpecError("is not JSON that can be read", file=file) from error
    if not isinstance(values, dict):
        raise SpecError("must be a JSON object", file=file)
    return values


# Families. Each returns the fields that are its own.


def _mixtral(config: _Config) -> _Fields:
    return {
        "attention": _grouped(config) | {"window": config.optional("sliding_window")},
        "experts": _experts(config, "num_local_experts", "intermediate_size"),
    }


def _olmoe(config: _Config) -> _Fields:
    return {
        "attention": _grouped(config),
        "experts": _experts(config, "num_experts", "intermediate_size"),
    }


def _qwen_moe(config: _Config) -> _Fields:
    layers, step = _layers(config), config.count("decoder_sparse_step", 1)
    dense = config.numbers("mlp_only_layers")
    first_dense = len(dense)
    if dense != list(range(first_dense)):
        raise config.error(f"only leading layers may be dense here; {_WAY_OUT}", "mlp_only_layers")
    if config.flag("use_sliding_window", False) and config.count("max_window_layers", layers) < layers:
        raise config.error(
            f"sliding windows of some layers are not known here; {_WAY_OUT}", "max_window_layers"
        )
    experts = _experts(config, "num_experts", "moe_intermediate_size")
    return {
        "attention": _grouped(config),
        "experts": experts | {"shared_width": config.count("shared_expert_intermediate_size", 0)},
        "first_dense": first_dense,
        "moe_every": step,
        "dense_width": config.count("intermediate_size") if first_dense or step > 1 else None,
    }


def _deepseek(config: _Config) -> _Fields:
    if config.count("moe_layer_freq", 1) != 1:
        raise config.error(f"only 1 is known here; {_WAY_OUT}", "moe_layer_freq")
    latent = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    attention: _Fields = {
        "kind": "mla",
        "heads": config.count("num_attention_heads"),
        "q_lora_rank": config.optional("q_lora_rank"),
    }
    return _shared_and_first_dense(config) | {
        "attention": attention | {key: config.count(key) for key in latent}
    }


def _glm4(config: _Config) -> _Fields:
    return _shared_and_first_dense(config) | {"attention": _grouped(config)}


def _gpt_oss(config: _Config) -> _Fields:
    attention = _grouped(config)
    window = config.optional("sliding_window")
    if window is not None:
        attention |= {"window": window, "full_every": _full_every(config)}
    return {"attention": attention, "experts": _experts(config, "num_local_experts", "intermediate_size")}


_FAMILIES: dict[str, Callable[[_Config], _Fields]] = {
    "mixtral": _mixtral,
    "qwen2_moe": _qwen_moe,
    "qwen3_moe": _qwen_moe,
    "olmoe": _olmoe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    "gpt_oss": _gpt_oss,
    "glm4_moe": _glm4,
}


# Parts that families share.


def _layers(config: _Config) -> int:
    layers = config.count("num_hidden_layers")
    if layers > MAX_LAYERS:  # before anything is built layer by layer
        raise config.error(f"must be at most {MAX_LAYERS}", "num_hidden_layers")
    return layers


def _grouped(config: _Config) -> _Fields:
    heads = config.count("num_attention_heads")
    hidden = config.count("hidden_size")
    if not heads:
        raise config.error("must be at least 1", "num_attention_heads")
    return {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": config.count("num_key_value_heads", heads),
        "head_dim": config.count("head_dim", hidden // heads),
    }


def _experts(config: _Config, count: str, width: str) -> _Fields:
    return {
        "count": config.count(count),
        "top_k": config.count("num_experts_per_tok"),
        "width": config.count(width),
    }


def _shared_and_first_dense(config: _Config) -> _Fields:
    experts = _experts(config, "n_routed_experts", "moe_intermediate_size")
    first_dense = config.count("first_k_dense_replace", 0)
    return {
        "experts": experts
        | {
            "shared_width": config.count("n_shared_experts", 0) * experts["width"],
            "groups": config.count("n_group", 1),
            "top_groups": config.count("topk_group", 1),
        },
        "first_dense": first_dense,
        "dense_width": config.count("intermediate_size") if first_dense else None,
    }


def _full_every(config: _Config) -> int | None:
    """The period of ``layer_types``: of so many layers the last has full attention; None if none has."""
    kinds = config.numbers("layer_types")
    if not kinds:
        return 2  # transformers' default for gpt-oss: sliding and full in turn
    if "full_attention" not in kinds:
        return None
    period = kinds.index("full_attention") + 1
    expected = [
        "full_attention" if (layer + 1) % period == 0 else "sliding_attention"
        for layer in range(_layers(config))
    ]
    if kinds != expected:
        raise config.error(f"is of no regular pattern; {_WAY_OUT}", "layer_types")
    return period


_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def _dtypes(config: _Config) -> _Fields:
    """Dtypes of weights, experts and activations; bf16 where the config is silent."""
    key = "dtype" if config.text("dtype") else "torch_dtype"
    name = config.text(key) or "bfloat16"
    if name not in _DTYPES:
        raise config.error(f"must be one of {', '.join(_DTYPES)}", key)
    plain = _DTYPES[name]
    fields = {"weight_dtype": plain, "expert_dtype": plain, "kv_dtype": plain, "activation_dtype": plain}
    quantised = config.inside("quantization_config")
    if quantised is None:
        return fields
    method_key = "quantization_config.quant_method"
    method = quantised.text(method_key)
    if method == "fp8":
        return fields | {"weight_dtype": "fp8", "expert_dtype": "fp8"}
    if method == "mxfp4":  # gpt-oss: experts only
        return fields | {"expert_dtype": "mxfp4"}
    if method in ("gptq", "awq"):
        bits_key = "quantization_config.bits"
        bits = quantised.count(bits_key)
        if bits not in (4, 8):
            raise quantised.error("must be 4 or 8", bits_key)
        return fields | {"weight_dtype": f"int{bits}", "expert_dtype": f"int{bits}"}
    raise quantised.error(f"must be one of fp8, mxfp4, gptq, awq; for others {_WAY_OUT}", method_key)
