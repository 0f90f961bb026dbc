"""The forms in which a placement can be written, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from placement.errors import PlacementError
from placement.export.sglang import sglang
from placement.export.trtllm import trtllm
from placement.export.vllm import PROPOSAL, vllm
from placement.export.vllm_ascend import vllm_ascend
from placement.placement import Placement
from placement.placement_file import write_placement
from traces.files import write_text


@dataclass(frozen=True)
class Exporter:
    """A serving system's form.

    Attributes:
        system: what messages call it.
        text: from a placement, and the number of all layers of the model where it is known, to the file.
        note: what the reader of the file should know.
    """

    system: str
    text: Callable[[Placement, int | None], str]
    note: str = ""


EXPORTERS: Mapping[str, Exporter] = MappingProxyType(
    {
        "sglang": Exporter("SGLang", sglang),
        "trtllm": Exporter("TensorRT-LLM", trtllm),
        "vllm-ascend": Exporter("vllm-ascend", vllm_ascend),
        "vllm": Exporter("vLLM", vllm, f"no release of vLLM reads this; it follows the proposal {PROPOSAL}"),
    }
)

NATIVE = "native"
FORMATS = (NATIVE, *EXPORTERS)


def check_export(placement: Placement, name: str, *, hidden_layers: int | None = None) -> None:
    """Refuse what :func:`export` would.

    Raises:
        PlacementError: the format is unknown or cannot hold the placement.
    """
    if name not in FORMATS:
        raise PlacementError(f"no such format; known: {', '.join(FORMATS)}", field="format", got=name)
    if name != NATIVE:
        EXPORTERS[name].text(placement, hidden_layers)


def export(
    placement: Placement, path: str | Path, name: str = NATIVE, *, hidden_layers: int | None = None
) -> str:
    """Write ``placement``, whole or not at all; equal placements give equal bytes.

    Args:
        name: one of ``FORMATS``.
        hidden_layers: all layers of the model, dense ones included; SGLang's form needs it.

    Returns:
        what the reader of the file should know; mostly nothing.

    Raises:
        PlacementError: the format is unknown or cannot hold the placement.
        OutputError: the file cannot be written.
    """
    if name == NATIVE:
        write_placement(placement, path)
        return ""
    check_export(placement, name, hidden_layers=hidden_layers)
    exporter = EXPORTERS[name]
    write_text(path, exporter.text(placement, hidden_layers))
    return exporter.note
