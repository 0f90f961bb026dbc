"""Placements as files: JSON, strict when read, the same bytes for the same placement when written.

The format is described in ``docs/placement-format.md``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from placement.errors import PlacementError
from placement.placement import Placement
from traces.files import check_format, write_text

FORMAT = "moesim.placement/1"

MAX_BYTES = 32 << 20
"""Largest file read or written; 58 layers of 65,536 slots take 23 MB."""

_INT32 = np.iinfo(np.int32)
_FIELDS: dict[str, type] = {
    "format": str,
    "origin": str,
    "experts": int,
    "gpus": int,
    "layers": list,
    "slot_gpu": list,
    "slot_expert": list,
}
_KINDS = {
    str: "text",
    int: "an integer",
    list: "a list",
    dict: "an object",
    bool: "a boolean",
    float: "a number",
}


def write_placement(placement: Placement, path: str | Path) -> None:
    """Write ``placement`` as JSON, one line for each field and each layer, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
        PlacementError: the file would be larger than :func:`read_placement` accepts.
    """
    rows = ",\n  ".join(_compact(row) for row in placement.slot_expert_LS.tolist())
    fields = {
        "format": FORMAT,
        "origin": placement.origin,
        "experts": placement.experts,
        "gpus": placement.gpus,
        "layers": list(placement.layers),
        "slot_gpu": placement.slot_gpu_S.tolist(),
    }
    lines = [f'"{name}": {_compact(value)}' for name, value in fields.items()]
    text = "{" + ",\n ".join([*lines, f'"slot_expert": [\n  {rows}]']) + "}\n"
    if len(text) > MAX_BYTES:
        raise PlacementError(f"would take more than {MAX_BYTES} bytes", file=path, got=len(text))
    write_text(path, text)


def read_placement(path: str | Path) -> Placement:
    """Read a file that :func:`write_placement`, or anybody who follows the format, wrote.

    Raises:
        PlacementError: unreadable, too large, not JSON, of another format, or not a valid placement.
    """
    source = Path(path)
    content = _parse(source)
    # The format before the fields: a later major may have other fields.
    check_format(content.get("format"), "placement", 1, file=source, error=PlacementError)
    _check_fields(content, source)
    try:
        return Placement(
            slot_expert_LS=_integer_rows(content["slot_expert"]),
            slot_gpu_S=_integer_row(content["slot_gpu"], "slot_gpu"),
            experts=content["experts"],
            gpus=content["gpus"],
            layers=tuple(content["layers"]),
            origin=content["origin"],
        )
    except PlacementError as error:
        error.file = source
        raise


def _parse(source: Path) -> dict[str, Any]:
    if source.is_dir():
        raise PlacementError("is a folder, a placement file was expected", file=source)
    try:
        # Pipes and devices may never end; only a regular file has a size to check.
        if not source.is_file():
            raise PlacementError("there is no such file", file=source)
        if source.stat().st_size > MAX_BYTES:
            raise PlacementError(f"larger than {MAX_BYTES} bytes", file=source, got=source.stat().st_size)
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise PlacementError(f"cannot be read: {error.strerror or error}", file=source) from error
    except UnicodeDecodeError as error:
        raise PlacementError(f"is not UTF-8 text: byte {error.start}", file=source) from error

    def no_constant(name: str) -> NoReturn:
        raise PlacementError("is not a JSON number", file=source, got=name)

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, value in pairs:
            if name in content:
                raise PlacementError("the key stands twice", file=source, field=repr(name))
            content[name] = value
        return content

    try:
        content = json.loads(text, parse_constant=no_constant, object_pairs_hook=no_duplicates)
    except json.JSONDecodeError as error:
        raise PlacementError(f"is not JSON: {error.msg}", file=source, line=error.lineno) from error
    except ValueError as error:  # an integer of thousands of digits
        raise PlacementError("is not JSON: a number is too long", file=source) from error
    except RecursionError as error:
        raise PlacementError("is not a placement: nested too deeply", file=source) from error
    if not isinstance(content, dict):
        raise PlacementError(f"must be a JSON object, not {_kind(content)}", file=source)
    return content


def _check_fields(content: dict[str, Any], source: Path) -> None:
    for name in content:
        if name not in _FIELDS:
            raise PlacementError(f"unknown key; known: {', '.join(_FIELDS)}", file=source, field=repr(name))
    for name, kind in _FIELDS.items():
        if name not in content:
            raise PlacementError("is missing", file=source, field=name)
        if type(content[name]) is not kind:
            raise PlacementError(
                f"must be {_KINDS[kind]}, not {_kind(content[name])}", file=source, field=name
            )


def _integer_rows(rows: list[Any]) -> npt.NDArray[Any]:
    """int32 [layers, slots] from a list of equally long lists."""
    arrays = []
    for position, row in enumerate(rows):
        field = f"slot_expert[{position}]"
        if type(row) is not list:
            raise PlacementError(f"must be a list of slots, not {_kind(row)}", field=field)
        if len(row) != len(rows[0]):
            raise PlacementError(
                f"must have {len(rows[0])} slots as the first layer", field=field, got=len(row)
            )
        arrays.append(_integer_row(row, field))
    return np.array(arrays, dtype=np.int32)


def _integer_row(row: list[Any], field: str) -> npt.NDArray[Any]:
    for position, value in enumerate(row):
        if type(value) is not int:  # a boolean or 1.0 would convert silently
            raise PlacementError(f"must be an integer, not {_kind(value)}", field=f"{field}[{position}]")
        if not _INT32.min <= value <= _INT32.max:
            raise PlacementError("is out of range", field=f"{field}[{position}]", got=value)
    return np.array(row, dtype=np.int32)


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _kind(value: object) -> str:
    """The JSON type of a value: shown in place of the value, which may be huge or deeply nested."""
    return "null" if value is None else _KINDS[type(value)]
