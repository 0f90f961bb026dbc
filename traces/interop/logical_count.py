"""``{"logical_count": …}``: counts of all hidden layers in JSON, as users of SGLang pass them around."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from traces.base.input_file import first_bytes
from traces.interop.hints import Hints
from traces.interop.loads import to_table
from traces.load_table import LoadTable
from traces.load_table_file import read_load_table

_GLANCE = 4096


class LogicalCount:
    """[layers][experts] or [windows][layers][experts]; layers without any load are dense."""

    summary: ClassVar[str] = "JSON with the one key logical_count, counts of all hidden layers, as for SGLang"

    def detects(self, path: Path) -> bool:
        head = first_bytes(path, _GLANCE)
        return head.lstrip()[:1] == b"{" and b'"logical_count"' in head and b'"format"' not in head

    def open(self, path: Path, hints: Hints) -> LoadTable:
        table = read_load_table(path)
        return to_table(table.load_WLE, hints, file=path, origin=table.origin, layers=table.layers)
