"""The forms in which a placement can be written, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from placement.files import sglang, trtllm, vllm, vllm_ascend
from placement.files.native import write_placement
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement
from traces.base.files import write_text


@dataclass(frozen=True)
class Exporter:
    """A serving system's form.

    Attributes:
        system: what messages call it.
        suffixes: of the files that it reads.
        text: from a placement, and the number of all layers of the model where it is known, to the file.
        load_with: from the placement and the file to the command that makes a server read it; None where
            no release of the system does.
        note: what the reader of the file should know.
        one_copy: whether it keeps one copy of an expert on a GPU.
    """

    system: str
    suffixes: tuple[str, ...]
    text: Callable[[Placement, int | None], str]
    load_with: Callable[[Placement, str], str] | None = None
    note: str = ""
    one_copy: bool = False


EXPORTERS: Mapping[str, Exporter] = MappingProxyType(
    {
        "sglang": Exporter(sglang.SYSTEM, (".json",), sglang.write, sglang.load_with),
        "trtllm": Exporter(trtllm.SYSTEM, (".yaml", ".yml"), trtllm.write, trtllm.load_with),
        "vllm-ascend": Exporter(
            vllm_ascend.SYSTEM, (".json",), vllm_ascend.write, vllm_ascend.load_with, one_copy=True
        ),
        "vllm": Exporter(
            vllm.SYSTEM,
            (".json",),
            vllm.write,
            note=f"no release of vLLM reads this; it follows the proposal {vllm.PROPOSAL}",
        ),
    }
)

NATIVE = "native"
FORMATS = (NATIVE, *EXPORTERS)


def check_export(placement: Placement, name: str, *, hidden_layers: int | None = None) -> None:
    """Refuse what :func:`export` would.

    Raises:
        PlacementError: the format is unknown or cannot hold the placement.
    """
    _check_known(name)
    if name != NATIVE:
        EXPORTERS[name].text(placement, hidden_layers)


def check_suffix(path: str | Path, name: str) -> None:
    """Refuse a file that the system would take for something else, or not at all.

    Raises:
        PlacementError: the format is unknown, or the file's name ends otherwise than in its suffixes.
    """
    _check_known(name)
    if name != NATIVE and Path(path).suffix not in EXPORTERS[name].suffixes:
        exporter = EXPORTERS[name]
        rule = f"must end in {' or '.join(exporter.suffixes)} for {exporter.system}"
        raise PlacementError(rule, file=path, got=Path(path).suffix)


def keeps_one_copy(name: str) -> bool:
    """Whether a system keeps one copy of an expert on a GPU and would lose others.

    Raises:
        PlacementError: the format is unknown.
    """
    _check_known(name)
    return name != NATIVE and EXPORTERS[name].one_copy


def how_to_load(placement: Placement, path: str | Path, name: str) -> str:
    """The command that makes a server read an exported file; empty where there is none.

    Raises:
        PlacementError: the format is unknown.
    """
    _check_known(name)
    load_with = None if name == NATIVE else EXPORTERS[name].load_with
    return "" if load_with is None else load_with(placement, str(path))


def _check_known(name: str) -> None:
    if name not in FORMATS:
        raise PlacementError(f"no such format; known: {', '.join(FORMATS)}", field="format", got=name)


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
        PlacementError: the format is unknown or cannot hold the placement, or the file's name ends otherwise
            than it should.
        OutputError: the file cannot be written.
    """
    if name == NATIVE:
        write_placement(placement, path)
        return ""
    check_suffix(path, name)
    exporter = EXPORTERS[name]
    write_text(path, exporter.text(placement, hidden_layers))
    return exporter.note
