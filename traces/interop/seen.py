"""What a file of no known layout shows of itself, for the message that refuses it."""

from __future__ import annotations

import json
from pathlib import Path

from traces.base.door import first_bytes, is_folder, names_in
from traces.base.errors import TraceError, named
from traces.interop.archive import FAULTS, open_archive

_GLANCE = 1 << 16
_MOST = 10


def seen(path: Path) -> str:
    """What is in a file or folder, such as the keys of its first line; empty where nothing can be told."""
    if is_folder(path):
        return f"holds {named(names_in(path, TraceError), _MOST)}"
    head = first_bytes(path, _GLANCE)
    if head[:2] == b"PK":
        return _archive(path)
    lines = [line.strip() for line in head.splitlines() if line.strip()]
    if not lines or (not head.isascii() and b"\0" in head):
        return ""
    if lines[0][:1] == b"{":
        keys = dict.fromkeys(key for line in lines[:_MOST] for key in _keys(line))
        kind = "JSON lines" if len(lines) > 1 and _keys(lines[0]) else "JSON"
        return f"is {kind} with {named(keys, _MOST)}" if keys else ""
    if b"," in lines[0] and lines[0].isascii():
        names = lines[0].decode().replace('"', "").split(",")
        return f"is text whose first line names {named((name.strip() for name in names), _MOST)}"
    return ""


def _keys(line: bytes) -> list[str]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return list(content) if isinstance(content, dict) else []


def _archive(path: Path) -> str:
    try:
        with open_archive(path, "an archive", TraceError) as archive:
            return f"holds {named(sorted(archive.namelist()), _MOST)}"
    except FAULTS:
        return ""
