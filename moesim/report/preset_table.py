"""What ``moesim presets`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.table import Table
from rich.text import Text

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


def _table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        # A name cut in two cannot be copied.
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(row[column])) for column in columns))
    return table
