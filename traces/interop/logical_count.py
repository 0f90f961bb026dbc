"""``{"logical_count": …}``: counts of all hidden layers in JSON, as users of SGLang pass them around."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from traces.base.door import first_bytes
from traces.base.errors import LoadTableError, named
from traces.base.input_file import read_json
from traces.interop.hints import Hints
from traces.interop.loads import to_table
from traces.load_table import LoadTable, to_counts

_GLANCE = 4096


class LogicalCount:
    """[layers][experts] or [windows][layers][experts]; layers without any load are dense."""

    summary: ClassVar[str] = "JSON with the one key logical_count, counts of all hidden layers, as for SGLang"

    def detects(self, path: Path) -> bool:
        head = first_bytes(path, _GLANCE)
        return head.lstrip()[:1] == b"{" and b'"logical_count"' in head and b'"format"' not in head

    def open(self, path: Path, hints: Hints) -> LoadTable:
        content = read_json(path, "a load table", LoadTableError)
        if "logical_count" not in content:
            raise LoadTableError(f"lacks the key logical_count; it has {named(content)}", file=path)
        count_WLE = to_counts(content["logical_count"], file=path, field="logical_count")
        return to_table(count_WLE, hints, file=path, origin="SGLang logical_count")
