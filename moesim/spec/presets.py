"""What is built in: YAML files inside the package, and the models they name."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Mapping
from importlib.resources.abc import Traversable
from typing import Any

from moesim.errors import SpecError
from moesim.spec.base import Spec, suggest, validate
from moesim.spec.hf_config import read_hf_config
from moesim.spec.model import Model
from moesim.spec.yaml_source import Loc, Source, parse_yaml, read_yaml


def preset_names(kind: str) -> list[str]:
    """Names of the presets of ``kind``, sorted: a folder of ``moesim/presets``, such as ``models``."""
    folder = _folder(kind)
    if not folder.is_dir():
        return []
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def preset_source(kind: str, name: str, at: Loc = (), named_in: Source | None = None) -> Source:
    """The preset ``name`` of ``kind``, read from the package, zipped or not.

    ``named_in`` and ``at`` say where the name was given, for the message.

    Raises:
        SpecError: there is none of that name; the known ones are listed.
    """
    known = preset_names(kind)
    if name not in known:  # so a name can never lead out of the folder
        where = named_in or Source(name, None, {})
        thing = kind.removesuffix("s")
        raise where.error(
            f"no such {thing} preset; {suggest(name, known)}known: {', '.join(known)}", at, got=name
        )
    text = (_folder(kind) / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, f"preset {kind}/{name}")


def load_model(value: Any, source: Source, at: Loc = ()) -> Model:
    """The model that ``value``, which stands at ``at`` in ``source``, describes.

    ``value`` is a preset's name; a path to a ``config.json`` of Hugging Face, to the folder that holds one,
    or to a YAML file of our own fields; or the fields themselves, where ``base`` may name a preset or file
    whose fields the others replace: ``{base: deepseek-v3, kv_dtype: fp8}``.

    Raises:
        SpecError: unknown preset, unreadable file, or a field that breaks a rule.
    """
    if isinstance(value, str):
        return _model_named(value, source, at)
    if isinstance(value, dict) and "base" in value:
        value = on_base(value, lambda name: _model_named(name, source, (*at, "base")), source, at)
    return validate(Model, value, source=source, at=at)


def on_base(
    value: Mapping[str, Any], named: Callable[[str], Spec], source: Source, at: Loc
) -> dict[str, Any]:
    """The fields of ``named(value["base"])`` with those of ``value`` over them, mapping by mapping."""
    base, own = value["base"], {key: part for key, part in value.items() if key != "base"}
    if not isinstance(base, str):
        raise source.error("must be a name", (*at, "base"), got=base)
    return _merge(named(base).model_dump(exclude_none=True), own)


def _model_named(name: str, source: Source, at: Loc) -> Model:
    if name in preset_names("models"):
        preset = preset_source("models", name)
        return validate(Model, preset.value, source=preset)
    path = source.path(name)
    if name.endswith((".yaml", ".yml")):
        own = read_yaml(path)
        return validate(Model, own.value, source=own)
    if name.endswith(".json"):
        return read_hf_config(path)
    if "/" in name or "\\" in name:
        return read_hf_config(path / "config.json")
    try:
        preset_source("models", name, at, source)
    except SpecError as error:
        error.rule += "; or give a path to a config.json"
        raise
    raise AssertionError("a known preset was read above")


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _folder(kind: str) -> Traversable:
    return importlib.resources.files("moesim") / "presets" / kind
