"""The keys of a ``config.json``: read by name and type, and none that matters left unread."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.errors import SpecError
from moesim.spec.model import MAX_LAYERS

WAY_OUT = "write the model's fields inline instead"

# Keys that say nothing of what is multiplied, kept or sent: bookkeeping, tokens, positions, norms, training,
# decoding, and layers that predict further tokens, which are left out. Biases and norms are not counted.
_NEUTRAL = re.compile(
    r"(architectures|auto_map|model_type|transformers_version|(torch_)?dtype|_.*|id2label|label2id|problem_type"
    r"|.*token_?ids?(_list)?|.*_token(_index)?|tokenizer.*|vocab_size.*|.*_vocab_size|language|tie_.*"
    r"|is_.*|add_.*|return_.*|output_.*|use_cache|.*_fp32.*|fp32.*|.*cross_attention.*|pruned_heads"
    r"|.*rope.*|.*rotary.*|.*yarn.*|position_embedding_type|max_position.*|max_.*len.*|.*seq_?len.*"
    r"|.*position_embeddings.*|model_max_length|original_max.*|attn_temperature_tuning|floor_scale"
    r"|.*norm.*|hidden_act.*|.*activation.*|.*act_fn|swiglu.*"
    r"|.*bias.*|sinks?|attention_sink.*|init.*|.*initializer.*|.*dropout.*|.*drop|.*loss.*|.*aux.*|.*jitter.*"
    r"|.*gradient.*|train.*|pretraining_tp|ep_size|.*parallel_size|.*_impl(ementation)?|use_flash.*|use_mamba.*"
    r"|use_mambapy|use_associative_scan|kernel.*|chunk_size_feed_forward|cache_implementation"
    r"|scoring_func|score_func.*|score_function|topk_method|.*scaling.*|.*multiplier|.*_scale|.*scale_factor|scale_.*"
    r"|routing_method|moe_router.*|router_(dtype|type|enable.*)|moe_renormalize|moe_gate.*|topk_softmax"
    r"|num_nextn.*|.*mtp.*|num_speculative.*|nextn.*|moe_implementation|moe_mean.*|moe_random.*|moe_drop.*"
    r"|temperature|top_[kp]|typical_p|num_(beams?|beam_groups|return_sequences)|do_sample|early_stopping"
    r"|.*penalty|no_repeat.*|encoder_no.*|bad_words.*|begin_suppress.*|suppress.*|forced_.*|remove_invalid.*"
    r"|min_length|max_length|diversity.*|prefix|task_specific.*|tf_legacy.*|torchscript|finetuning_task"
    r"|.*_(alpha|beta)_factor|clip_qkv|router_z.*|mamba_chunk_size|mamba_(conv|proj)_bias|time_step.*|use_qk.*|qk_.*norm.*"
    r"|(generation|compression|quantization|rope|speech)_config|quantization.*|.*ignore.*|hc_eps|hc_sinkhorn.*|no_rope.*|.*image.*|.*video.*|.*vision.*|.*audio.*"
    r"|vit_.*|anyres_.*|img_.*|im_.*|mm_.*|pool_type|class_num|moe_.*capacity.*|moe_token_dropp.*|moe_group"
    r"|moe_multimodal.*|moe_use_aux.*|moe_use_hard.*|.*tensor_parallelism|shared_moe_mode"
    r"|ffn_act_fn|resid_.*|emb_.*|attn_pdrop|default_.*|for_.*|mask_.*|extra.*|ep_.*|version|name)"
)
_ARCHITECTURE = re.compile(
    r"expert|moe|layer|hidden|dim|rank|head|width|size|ffn|mlp|mamba|conv|attn|attention|window|index|group"
    r"|share|residual|block|state|compress|chunk|sparse|gate|latent|cla|kv|lora|recurr|pattern|dense|hash|hc_|config"
)


class Config:
    """One ``config.json``, or the part of it that describes the language model.

    A missing or mistyped key is reported by its name, and :meth:`check_read` reports those that no reader
    asked for although they change the architecture.
    """

    def __init__(self, values: Mapping[str, Any], file: Path, prefix: str = "") -> None:
        self._values, self.file, self._prefix = values, file, prefix
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def get(self, key: str) -> Any:
        """The value as it is; None where the key is absent or null."""
        self._read.add(key)
        return self._values.get(key)

    def count(self, *keys: str, default: int | None = None) -> int:
        """A whole number from 0 under the first of ``keys`` that is there; a list must repeat one number."""
        key = next((key for key in keys if key in self), keys[0])
        self._read.update(keys)
        value = self._values.get(key)
        if value is None:
            value = default
        if value is None:
            also = f" (or {', '.join(keys[1:])})" if keys[1:] else ""
            raise SpecError(f"is missing{also}; {WAY_OUT}", file=self.file, field=self._prefix + key)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if isinstance(value, list):
            raise self.error(f"differs from layer to layer, which is not known here; {WAY_OUT}", key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error("must be a whole number", key)
        return value

    def optional(self, key: str) -> int | None:
        """As :meth:`count`; None where the key is absent or null."""
        return None if self.get(key) is None else self.count(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error("must be true or false", key)
        return value

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error("must be text", key)
        return value

    def numbers(self, key: str) -> list[Any]:
        """A list; empty where the key is absent or null."""
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error("must be a list", key)
        return value

    def inside(self, key: str) -> Config | None:
        """The mapping under ``key``, if there is one."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error("must be a mapping", key)
        return Config({str(name): part for name, part in value.items()}, self.file, f"{self._prefix}{key}.")

    def mapping(self) -> dict[str, Any]:
        """All that is in it."""
        self._read.update(self._values)
        return dict(self._values)

    @property
    def layers(self) -> int:
        """The number of layers, small enough to look at each."""
        key = "num_hidden_layers" if "num_hidden_layers" in self or "n_layers" not in self else "n_layers"
        layers = self.count(key)
        if not 1 <= layers <= MAX_LAYERS:
            raise self.error(f"must be from 1 to {MAX_LAYERS}", key)
        return layers

    def by_layer(self, key: str) -> list[Any]:
        """A list with an entry for each layer; empty where the key is absent or null."""
        found = self.numbers(key)
        if found and len(found) < self.layers:
            raise self.error(f"must have {self.layers} entries, one for each layer", key)
        return found[: self.layers]

    def kinds(self, key: str) -> list[str]:
        """As :meth:`by_layer`, of text."""
        found = self.by_layer(key)
        for each in found:
            if not isinstance(each, str):
                raise self.error("must be a list of text", key)
        return found

    def indices(self, key: str) -> list[int]:
        """A list of whole numbers from 0; empty where the key is absent or null."""
        found = self.numbers(key)
        for each in found:
            if isinstance(each, bool) or not isinstance(each, int) or each < 0:
                raise self.error("must be a list of whole numbers", key)
        return found

    def only(self, key: str, *known: Any) -> None:
        """Refuse a value of ``key`` that is none of ``known``; absent and null will do.

        Raises:
            SpecError: it is another.
        """
        value = self.get(key)
        if value is not None and value not in known:
            wanted = " or ".join(str(each) for each in known)
            raise self.error(f"only {wanted} is known here; {WAY_OUT}", key)

    def check_read(self) -> None:
        """Refuse a key that changes the architecture and that nobody has read.

        A key does so where its name speaks of layers, experts, widths and the like, and its value is neither
        empty nor off nor a fraction.

        Raises:
            SpecError: there is such a key.
        """
        for key, value in self._values.items():
            off = value in (None, False, 0, "", "none", [], {}) or isinstance(value, float)
            if key in self._read or off or _NEUTRAL.fullmatch(key) or not _ARCHITECTURE.search(key):
                continue
            rule = f"changes the architecture in a way that is not known here; {WAY_OUT}"
            raise self.error(rule, key)

    def error(self, rule: str, key: str) -> SpecError:
        """The error of a key, with its value."""
        return SpecError(rule, file=self.file, field=self._prefix + key, got=self._values.get(key))
