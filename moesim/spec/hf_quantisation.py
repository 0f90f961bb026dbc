"""Dtypes of a Hugging Face checkpoint: its own, and those of its quantisation, in or beside the config.

Methods and their keys as transformers (quantizers), NVIDIA ModelOpt (``hf_quant_config.json``) and
compressed-tensors write them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moesim.errors import SpecError
from moesim.spec.hf_keys import WAY_OUT, Config
from moesim.spec.yaml_source import read_text

BESIDE = "hf_quant_config.json"
"""What ModelOpt writes beside a ``config.json`` that may know nothing of it."""

_PLAIN = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_ALGORITHMS = {
    **dict.fromkeys(("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "FP8_PB_REAL", "W8A8_FP8"), "fp8"),
    **dict.fromkeys(("NVFP4", "W4A16_NVFP4", "NVFP4_AWQ"), "nvfp4"),
    **dict.fromkeys(("MXFP4", "W4A8_MXFP4_FP8", "W4A16_MXFP4"), "mxfp4"),
    **dict.fromkeys(("W4A16_AWQ", "W4A8_AWQ", "W4A16", "W4A16_GPTQ", "INT4_AWQ"), "int4"),
    **dict.fromkeys(("W8A16", "W8A8_SQ_PER_CHANNEL", "INT8", "W8A16_GPTQ", "INT8_SQ"), "int8"),
}
_METHODS = ("fp8", "mxfp4", "gptq", "awq", "modelopt", "compressed-tensors", "fbgemm_fp8", "quark")

Fields = dict[str, Any]


def dtypes(config: Config, outer: Config) -> Fields:
    """Dtypes of weights, experts, cache and activations; bf16 where nothing says.

    Args:
        config: the language model's part.
        outer: the whole file, which may hold the quantisation instead.

    Raises:
        SpecError: a dtype or method that is not known, or two that contradict each other.
    """
    holder = config if "dtype" in config or "torch_dtype" in config else outer
    key = "dtype" if holder.text("dtype") else "torch_dtype"
    name = holder.text(key) or "bfloat16"
    if name not in _PLAIN:
        raise holder.error(f"must be one of {', '.join(_PLAIN)}", key)
    plain = _PLAIN[name]
    fields = {"weight_dtype": plain, "expert_dtype": plain, "kv_dtype": plain, "activation_dtype": plain}
    inside = config.inside("quantization_config") or outer.inside("quantization_config")
    found = {} if inside is None else _method(inside, plain)
    beside = _beside(outer.file.parent / BESIDE, plain)
    for part in ("expert_dtype", "kv_dtype"):
        if part in found and part in beside and found[part] != beside[part]:
            rule = f"says {part} {found[part]}, {BESIDE} beside it says {beside[part]}"
            raise SpecError(rule, file=outer.file, field="quantization_config")
    expert = config.text("expert_dtype") or (None if inside is None else inside.text("expert_dtype"))
    if expert is not None:
        known = {"fp4": "mxfp4", "fp8": "fp8", **_PLAIN, **{each: each for each in _PLAIN.values()}}
        if expert not in known:
            raise config.error(f"must be one of {', '.join(known)}", "expert_dtype")
        found["expert_dtype"] = known[expert]
    return fields | beside | found


def _method(config: Config, plain: str) -> Fields:
    """What a ``quantization_config`` says."""
    method = config.text("quant_method")
    if method is None and "quant_algo" in config:
        method = "modelopt"
    kept = " ".join(
        str(each)
        for key in ("modules_to_not_convert", "ignore", "ignored_layers", "exclude", "exclude_modules")
        for each in config.numbers(key)
    )
    if method in ("fp8", "fbgemm_fp8"):
        return _quantised("fp8", plain, kept)
    if method == "mxfp4":  # gpt-oss: experts only
        return {"expert_dtype": "mxfp4"}
    if method in ("gptq", "awq"):
        bits = config.count("bits")
        if bits not in (4, 8):
            raise config.error("must be 4 or 8", "bits")
        return _quantised(f"int{bits}", plain, kept)
    if method is not None and method.startswith("modelopt"):
        return _algorithm(config, "kv_cache_scheme" if "kv_cache_scheme" in config else "", plain, kept)
    if method == "compressed-tensors":
        return _compressed(config, plain, kept)
    if method == "quark":
        return _quark(config, plain, kept)
    raise config.error(f"must be one of {', '.join(_METHODS)}; for others {WAY_OUT}", "quant_method")


def _quantised(dtype: str, plain: str, kept: str) -> Fields:
    """Experts in ``dtype``, and so the other weights where attention is not kept as it was."""
    return {"weight_dtype": plain if "attn" in kept else dtype, "expert_dtype": dtype}


def _algorithm(config: Config, scheme: str, plain: str, kept: str) -> Fields:
    """ModelOpt's ``quant_algo`` and ``kv_cache_quant_algo``."""
    algorithm = config.text("quant_algo")
    if algorithm == "MIXED_PRECISION":
        return _mixed(config, plain)
    if algorithm not in _ALGORITHMS:
        raise config.error(f"must be one of {', '.join(_ALGORITHMS)}; for others {WAY_OUT}", "quant_algo")
    fields = _quantised(_ALGORITHMS[algorithm], plain, kept)
    cache = config.text("kv_cache_quant_algo")
    if cache is not None:
        if _ALGORITHMS.get(cache) not in ("fp8", "nvfp4", "int8"):
            raise config.error("must be one of FP8, NVFP4, INT8", "kv_cache_quant_algo")
        fields["kv_dtype"] = _ALGORITHMS[cache]
    return fields | (_cache(config, scheme) if scheme else {})


def _mixed(config: Config, plain: str) -> Fields:
    """``quantized_layers``: each layer by its name; experts must agree, and so must the others."""
    layers = config.inside("quantized_layers")
    names = {} if layers is None else layers.mapping()
    parts: dict[str, set[str]] = {"expert_dtype": set(), "weight_dtype": set()}
    for name, layer in names.items():
        algorithm = layer.get("quant_algo") if isinstance(layer, dict) else None
        if algorithm not in _ALGORITHMS:
            raise config.error(f"its quant_algo must be one of {', '.join(_ALGORITHMS)}", "quantized_layers")
        routed = "experts" in name and "shared" not in name
        parts["expert_dtype" if routed else "weight_dtype"].add(_ALGORITHMS[algorithm])
    if len(parts["expert_dtype"]) != 1:
        rule = f"must quantise all experts alike; for others {WAY_OUT}"
        raise SpecError(rule, file=config.file, field="quantized_layers", got=sorted(parts["expert_dtype"]))
    weights = parts["weight_dtype"]
    return {
        "expert_dtype": next(iter(parts["expert_dtype"])),
        "weight_dtype": next(iter(weights)) if len(weights) == 1 else plain,
    }


def _compressed(config: Config, plain: str, kept: str) -> Fields:
    """compressed-tensors: the weights of its groups."""
    groups = config.inside("config_groups")
    found = set()
    for name in [] if groups is None else groups.mapping():
        group = groups.inside(name) if groups is not None else None
        weights = None if group is None else group.inside("weights")
        if weights is None:
            continue
        bits, kind = weights.count("num_bits"), weights.text("type") or "int"
        form = (group.text("format") if group is not None else None) or config.text("format") or ""
        if kind == "float" and bits == 4:
            found.add("mxfp4" if "mxfp4" in form or weights.get("group_size") == 32 else "nvfp4")
        elif kind in ("int", "float") and bits in (4, 8):
            found.add("fp8" if kind == "float" else f"int{bits}")
        else:
            raise weights.error(f"must be 4 or 8; for others {WAY_OUT}", "num_bits")
    if len(found) != 1:
        rule = f"must quantise all weights alike; for others {WAY_OUT}"
        raise SpecError(rule, file=config.file, field="quantization_config.config_groups", got=sorted(found))
    return _quantised(found.pop(), plain, kept) | _cache(config, "kv_cache_scheme")


def _quark(config: Config, plain: str, kept: str) -> Fields:
    """AMD Quark: ``global_quant_config.weight.dtype``."""
    whole = config.inside("global_quant_config")
    weight = None if whole is None else whole.inside("weight")
    name = None if weight is None else weight.text("dtype")
    known = {"fp4": "mxfp4", "fp8_e4m3": "fp8", "int8": "int8", "int4": "int4"}
    if name not in known:
        rule = f"must be one of {', '.join(known)}; for others {WAY_OUT}"
        raise SpecError(rule, file=config.file, field="global_quant_config.weight.dtype", got=name)
    return _quantised(known[name], plain, kept)


def _cache(config: Config, key: str) -> Fields:
    """A scheme of the KV cache: ``{num_bits: 8, type: float}``."""
    scheme = config.inside(key)
    if scheme is None:
        return {}
    bits, kind = scheme.count("num_bits"), scheme.text("type") or "float"
    if bits != 8 or kind not in ("float", "int"):
        raise scheme.error("must be 8", "num_bits")
    return {"kv_dtype": "fp8" if kind == "float" else "int8"}


def _beside(file: Path, plain: str) -> Fields:
    """What ``hf_quant_config.json`` says; nothing where there is none."""
    if not file.exists():
        return {}
    try:
        values = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise SpecError("is not JSON that can be read", file=file) from error
    whole = Config(values, file) if isinstance(values, dict) else None
    quantised = None if whole is None else whole.inside("quantization")
    if quantised is None:
        raise SpecError("is missing", file=file, field="quantization")
    if quantised.get("quant_algo") is None:
        cache = quantised.text("kv_cache_quant_algo")
        return {} if cache is None else {"kv_dtype": _ALGORITHMS.get(cache, plain)}
    kept = " ".join(map(str, quantised.numbers("exclude_modules")))
    return _algorithm(quantised, "", plain, kept)
