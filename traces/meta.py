"""What a routing trace says about itself: the model's shape, and where the routing comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from traces.base.errors import MoesimError, TraceError

FORMAT_THING, FORMAT_MAJOR = "trace", 1
MAX_EXPERTS = 65_536  # ids are at most uint16


@dataclass(frozen=True)
class TraceMeta:
    """The shape of the model's routing and the origin of the trace.

    Attributes:
        model: the model's name, such as ``gpt-oss-20b``; may be empty where it is unknown.
        experts: E, logical experts of each MoE layer.
        top_k: K, experts chosen for each token in each MoE layer.
        layers: true indices of the recorded MoE layers in the model, ascending. DeepSeek-V3's
            first MoE layer is 3: layers 0 to 2 are dense and do not appear.
        origin: where the routing comes from, in words or as an address.
        licence: under which terms the trace may be passed on; empty where it is unknown.
        candidates: C, experts stored with a score for each token and layer; 0 = none, else above K.
        hidden_layers: all layers of the model, dense ones included; None where nothing tells.

    Raises:
        TraceError: a value breaks the rules above.
    """

    model: str
    experts: int
    top_k: int
    layers: tuple[int, ...]
    origin: str
    licence: str
    candidates: int = 0
    hidden_layers: int | None = None

    def __post_init__(self) -> None:
        _require_text("model", self.model)
        _require_int("experts", self.experts, 1, MAX_EXPERTS)
        _require_int("top_k", self.top_k, 1, self.experts)
        _require_layers(self.layers)
        _require_text("origin", self.origin)
        _require_text("licence", self.licence)
        _require_int("candidates", self.candidates, 0, self.experts)
        if 0 < self.candidates <= self.top_k:
            raise TraceError("must be 0 or above top_k", field="candidates", got=self.candidates)
        if self.hidden_layers is not None:
            _require_int("hidden_layers", self.hidden_layers, self.layers[-1] + 1, 2**31)

    @property
    def ids_dtype(self) -> np.dtype[Any]:
        """The one dtype of this model's expert ids: uint8 up to 256 experts, else uint16."""
        return np.dtype(np.uint8 if self.experts <= 256 else np.uint16)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them, in a fixed order."""
        fields = {**asdict(self), "layers": list(self.layers)}
        if self.hidden_layers is None:
            del fields["hidden_layers"]
        return fields

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], *, file: str | Path) -> TraceMeta:
        """Build from decoded JSON; keys of later minor versions are ignored.

        Raises:
            TraceError: a key is missing or its value is not allowed; the message names ``file``.
        """
        for key in ("model", "experts", "top_k", "layers"):
            if key not in found:
                raise TraceError(f"the metadata lacks {key}", file=file)
        layers = found["layers"]
        try:
            return cls(
                model=found["model"],
                experts=found["experts"],
                top_k=found["top_k"],
                layers=tuple(layers) if isinstance(layers, list) else layers,
                origin=found.get("origin", ""),
                licence=found.get("licence", ""),
                candidates=found.get("candidates", 0),
                hidden_layers=found.get("hidden_layers"),
            )
        except TraceError as error:
            raise in_file(error, file) from error


def in_file(error: MoesimError, file: str | Path | None) -> MoesimError:
    """The same error, of the same class, with the file named that it was found in."""
    return type(error)(error.rule, file=file, line=error.line, field=error.field, got=error.got)


def _require_text(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise TraceError("must be text", field=field, got=value)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can smuggle in
        raise TraceError("must be valid Unicode", field=field, got=ascii(value)) from error


def _require_int(field: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TraceError("must be a whole number", field=field, got=value)
    if not low <= value <= high:
        raise TraceError(f"must be between {low} and {high}", field=field, got=value)


def _require_layers(layers: object) -> None:
    if not isinstance(layers, tuple) or not layers:
        raise TraceError("must name at least one layer", field="layers", got=layers)
    for layer in layers:
        _require_int("layers", layer, 0, 2**31 - 1)
    if any(before >= after for before, after in pairwise(layers)):
        raise TraceError("must ascend, each layer once", field="layers", got=layers)
