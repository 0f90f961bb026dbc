"""What ``moesim presets`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def preset_tables(catalogue: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """One table for each kind; columns are the keys of its rows."""
    tables = []
    for kind, rows in catalogue.items():
        table = Table(title=kind, title_justify="left")
        for column in rows[0]:
            # A name cut in two cannot be copied.
            table.add_column(column, no_wrap=column == "name", overflow="fold")
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        tables.append(table)
    return tables
