"""Placements as files: JSON, strict when read, the same bytes for the same placement when written.

The format is described in ``docs/placement-format.md``.
"""

from __future__ import annotations

from pathlib import Path

from placement.files.text import MAX_BYTES, compact_json, parse_json, read_text
from placement.files.values import check_keys, integer_row, integer_rows, kind
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement
from traces.base.files import check_format, write_text

FORMAT = "moesim.placement/1"

_FIELDS: dict[str, type] = {
    "format": str,
    "origin": str,
    "experts": int,
    "gpus": int,
    "layers": list,
    "slot_gpu": list,
    "slot_expert": list,
}


def write_placement(placement: Placement, path: str | Path) -> None:
    """Write ``placement`` as JSON, one line for each field and each layer, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
        PlacementError: the file would be larger than :func:`read_placement` accepts.
    """
    rows = ",\n  ".join(map(compact_json, placement.slot_expert_LS.tolist()))
    fields = {
        "format": FORMAT,
        "origin": placement.origin,
        "experts": placement.experts,
        "gpus": placement.gpus,
        "layers": list(placement.layers),
        "slot_gpu": placement.slot_gpu_S.tolist(),
    }
    lines = [f'"{name}": {compact_json(value)}' for name, value in fields.items()]
    text = "{" + ",\n ".join([*lines, f'"slot_expert": [\n  {rows}]']) + "}\n"
    if len(text) > MAX_BYTES:
        raise PlacementError(f"would take more than {MAX_BYTES} bytes", file=path, got=len(text))
    write_text(path, text)


def read_placement(path: str | Path) -> Placement:
    """Read a file that :func:`write_placement`, or anybody who follows the format, wrote.

    :func:`placement.files.reading.load_placement` also reads the forms of serving systems.

    Raises:
        PlacementError: unreadable, too large, not JSON, of another format, or not a valid placement.
    """
    source = Path(path)
    try:
        return native(parse_json(read_text(source)), source)
    except PlacementError as error:
        error.file = source
        raise


def native(content: object, source: Path) -> Placement:
    """The placement in the JSON of ``source``.

    Raises:
        PlacementError: it is of another format, or not a valid placement.
    """
    if type(content) is not dict:
        raise PlacementError(f"must be a JSON object, not {kind(content)}")
    # The format before the fields: a later major may have other fields.
    check_format(content.get("format"), "placement", 1, file=source, error=PlacementError)
    fields = check_keys(content, _FIELDS)
    rows = ((f"slot_expert[{position}]", row) for position, row in enumerate(fields["slot_expert"]))
    return Placement(
        slot_expert_LS=integer_rows(rows),
        slot_gpu_S=integer_row(fields["slot_gpu"], "slot_gpu"),
        experts=fields["experts"],
        gpus=fields["gpus"],
        layers=tuple(fields["layers"]),
        origin=fields["origin"],
    )
