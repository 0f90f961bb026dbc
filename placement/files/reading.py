"""A placement from a file of whichever form, told by its content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from placement.files import sglang, trtllm, vllm, vllm_ascend
from placement.files.native import FORMAT, native
from placement.files.target import Target
from placement.files.text import parse_json, read_text
from placement.files.yaml_values import parse_yaml
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement

READERS: Mapping[str, Callable[[dict[str, Any], Target], Placement]] = MappingProxyType(
    {sglang.KEY: sglang.read, trtllm.KEY: trtllm.read, vllm_ascend.KEY: vllm_ascend.read}
)
"""Forms of serving systems by the key that no other form has."""


def load_placement(path: str | Path, target: Target) -> Placement:
    """Read a placement file of ours, or one that a serving system reads, for a model and a group of GPUs.

    Raises:
        PlacementError: unreadable, too large, of no known form, no valid placement, or one of other experts,
            layers or GPUs.
    """
    source = Path(path)
    try:
        placement = _placement(read_text(source), source, target)
        placement.check_fits(target.experts, target.gpus, target.layers)
    except PlacementError as error:
        error.file = source
        raise
    return placement


def _placement(text: str, source: Path, target: Target) -> Placement:
    if text.lstrip("\ufeff \t\r\n")[:1] not in ("{", "["):
        content = parse_yaml(text)
    else:
        content = parse_json(text)
        if isinstance(content, list):
            return vllm.read(content, target)
        if "format" in content:
            return native(content, source)
    if isinstance(content, dict):
        for key, read in READERS.items():
            if key in content:
                return read(content, target)
    raise PlacementError(f"is no placement: neither format {FORMAT} nor any of {', '.join(READERS)} is in it")
