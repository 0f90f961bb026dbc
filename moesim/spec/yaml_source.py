"""YAML as plain values, each with the line where it stands.

Reads the part of YAML that a specification needs: mappings with text keys, lists, and scalars by the
rules of YAML 1.2 (core schema), so that ``1e-5`` is a number, ``on`` is text and ``12:30`` is no number
of minutes. Size is limited for the same reason as what :mod:`traces.base.yaml_walk` limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moesim.errors import SpecError
from traces.base.door import first_bytes, read_bytes
from traces.base.yaml_walk import Loc as Loc
from traces.base.yaml_walk import YamlWalk, line_of

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 100_000

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_BASED_INT = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAX_DIGITS = 100  # Python itself refuses to read integers of some thousand digits


@dataclass(frozen=True)
class Source:
    """A value, the file it came from, and the line (from 1) of every part of it.

    ``file`` is None for values that no file holds; ``lines`` may be empty where lines are unknown.
    """

    value: Any
    file: str | None
    lines: Mapping[Loc, int]

    def line(self, loc: Loc) -> int | None:
        """Line of the value at ``loc``, or of its nearest ancestor that has one."""
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.lines:
                return self.lines[loc[:end]]
        return None

    def path(self, name: str) -> Path:
        """The file ``name`` as this source means it: relative to the source's own folder."""
        return (Path(self.file).parent if self.file is not None else Path()) / name

    def error(self, rule: str, loc: Loc = (), **got: Any) -> SpecError:
        """A SpecError for the value at ``loc``; pass ``got=`` to show the value."""
        return SpecError(rule, file=self.file, line=self.line(loc), field=show_loc(loc) or None, **got)


def show_loc(loc: Loc) -> str:
    """``("faults", 0, "clock")`` as ``faults[0].clock``, on one line whatever the keys hold."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_show_key(part)}" for part in loc)
    return text.removeprefix(".")


def _show_key(key: str) -> str:
    short = key if len(key) <= 60 else key[:59] + "…"
    return short if short.isprintable() and short else repr(short)


def read_text(path: str | Path, most: int = MAX_BYTES) -> str:
    """The text of a small regular file in UTF-8.

    Raises:
        SpecError: missing, unreadable, a folder, a device or Parquet, larger than ``most`` bytes, not UTF-8.
    """
    target = Path(path)
    if first_bytes(target, 4) == b"PAR1":
        raise SpecError("is a Parquet file, not a text; a scenario names its trace under trace", file=target)
    data = read_bytes(target, "a specification", SpecError, most=most, empty=True)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError("is not UTF-8 text", file=target, line=line) from error


def read_yaml(path: str | Path) -> Source:
    """Read a YAML file.

    Raises:
        SpecError: what :func:`read_text` and :func:`parse_yaml` refuse.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, file: str | None) -> Source:
    """Parse one YAML document; ``file`` is only for the messages.

    Raises:
        SpecError: broken syntax, a second document, a duplicate or non-text key, an anchor, alias or
            tag, too deep, too many values.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # undecodable bytes of a command line
        raise SpecError("is not UTF-8 text", file=file) from error
    walk = _Walk(file)
    value = walk.read(text)
    return Source(value, file, walk.lines or {(): 1})


class _Walk(YamlWalk):
    """Keys are text; every value's line is kept, a mapping's entry has that of its key."""

    def __init__(self, file: str | None) -> None:
        super().__init__(MAX_DEPTH, MAX_VALUES)
        self._file = file
        self.lines: dict[Loc, int] = {}

    def error(self, rule: str, line: int | None, loc: Loc = (), **got: Any) -> SpecError:
        return SpecError(rule, file=self._file, line=line, field=show_loc(loc) or None, **got)

    def value(self, event: Any, loc: Loc) -> Any:
        self.lines.setdefault(loc, line_of(event))
        return super().value(event, loc)

    def key(self, event: Any, loc: Loc, before: dict[Any, Any]) -> str:
        key = self.scalar(event, loc) if isinstance(event, yaml.ScalarEvent) else None
        if not isinstance(key, str) or event.anchor is not None or event.tag is not None:
            got = getattr(event, "value", "a structure")
            raise self.error("keys must be text", line_of(event), loc, got=got)
        at = (*loc, key)
        if key in before:
            rule = f"duplicate key, first given in line {self.lines[at]}"
            raise self.error(rule, line_of(event), at)
        self.lines[at] = line_of(event)
        return key

    def scalar(self, event: Any, loc: Loc) -> Any:
        text: str = event.value
        if not event.implicit[0]:  # quoted
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        number = _BASED_INT.fullmatch(text) or _FLOAT.fullmatch(text)
        if number and len(text) > _MAX_DIGITS:
            raise self.error("is a number of too many digits", line_of(event), loc, got=text)
        if _INT.fullmatch(text):
            return int(text)
        if _BASED_INT.fullmatch(text):
            return int(text, 0)
        if number:
            return float(text)
        if _SPECIAL_FLOAT.fullmatch(text):
            return float(text.replace(".", ""))
        return text
