"""The one table of the benchmarks: what was measured at the left, figures at the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text


def table_of(title: str, heads: Sequence[str], sections: Iterable[Iterable[Sequence[str]]] = ()) -> Table:
    """Rows below their heads, a line between sections."""
    made = Table(title=title, title_justify="left")
    for place, head in enumerate(heads):
        made.add_column(Text(head), justify="right" if place else "left")
    for rows in sections:
        for row in rows:
            made.add_row(*map(Text, row))
        made.add_section()
    return made
