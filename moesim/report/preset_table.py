"""What ``moesim presets`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from moesim.report.table import Column, Table

# Long texts, which beside other columns would be a few letters wide.
_APART: Final = ("source", "origin")


def preset_tables(catalogue: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """One table for each kind, whose columns are the keys of its rows; where they come from has its own."""
    tables = []
    for kind, rows in catalogue.items():
        beside = [column for column in rows[0] if column not in _APART]
        tables.append(_table(kind, beside, rows))
        tables += [_table(f"{kind}: {last}", ["name", last], rows) for last in _APART if last in rows[0]]
    return tables


def _table(title: str, heads: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Table:
    # A name cut in two cannot be copied.
    columns = [Column(head, whole=head == "name") for head in heads]
    return Table(columns, [[str(row[head]) for head in heads] for row in rows], title=title)
