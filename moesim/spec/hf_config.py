"""Models from the ``config.json`` of a Hugging Face checkpoint.

The keys differ from family to family (:mod:`moesim.spec.hf_families`). What a config cannot say in our terms
is refused, never guessed. Of models that also see or hear, the language model is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moesim.errors import SpecError
from moesim.spec.base import validate
from moesim.spec.hf_families import FAMILIES
from moesim.spec.hf_keys import WAY_OUT, Config
from moesim.spec.hf_quantisation import dtypes
from moesim.spec.model import Model
from moesim.spec.yaml_source import Source, read_text, show_loc

_LANGUAGE = ("text_config", "thinker_config", "llm_config", "language_config")
"""Where a config of a model that also sees or hears keeps that of its language model."""


def read_hf_config(path: str | Path) -> Model:
    """The model that a ``config.json`` describes, with ``hf_quant_config.json`` beside it where there is one.

    Raises:
        SpecError: unreadable, not JSON, a ``model_type`` that is not known here, a key that is missing, of
            a wrong type, of a meaning that a :class:`Model` cannot hold, or that changes the architecture in
            a way that is not known here.
    """
    file = Path(path)
    text = read_text(file)
    outer = Config(_parse(text, file), file)
    config = _language(outer)
    family = _family(config, outer, text)
    fields = {
        "name": file.parent.resolve().name or family,
        "layers": config.layers,
        "vocab": config.count("vocab_size"),
        "tied_embeddings": _tied(config, outer),
        "source": f"{family} config.json",
        **dtypes(config, outer),
        **FAMILIES[family](config),
    }
    fields.setdefault("hidden", None)
    if fields["hidden"] is None:
        fields["hidden"] = config.count("hidden_size")
    config.check_read()
    return validate(Model, fields, source=Source(fields, str(file), {}))


def _language(outer: Config) -> Config:
    """The part that describes the language model."""
    config = outer
    while (key := next((key for key in _LANGUAGE if key in config), None)) is not None:
        inner = config.inside(key)
        assert inner is not None  # the key is there
        config = inner
    return config


def _family(config: Config, outer: Config, text: str) -> str:
    """The ``model_type`` that tells the keys: that of the language model, else that of the whole.

    Raises:
        SpecError: none is known here, or the model has no experts.
    """
    inner, whole = config.text("model_type"), outer.text("model_type")
    for known in (inner, whole):
        if known is not None and known in FAMILIES:
            return known
    holder = config if inner is not None else outer
    if inner is None and whole is None:
        raise SpecError(f"is missing; {WAY_OUT}", file=outer.file, field="model_type")
    if "expert" not in text and "moe" not in text:
        rule = "speaks of no experts: a dense model has nothing to place or balance"
        raise holder.error(rule, "model_type")
    raise holder.error(f"known: {', '.join(FAMILIES)}; for others {WAY_OUT}", "model_type")


def _tied(config: Config, outer: Config) -> bool:
    key = "tie_word_embeddings"
    return config.flag(key, outer.flag(key, False))


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
