"""A table, built once and shown both in the terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from moesim.report.markup import Markup, tag

if TYPE_CHECKING:
    from rich import table


@dataclass(frozen=True)
class Column:
    """A head, and how the cells below it stand.

    Attributes:
        number: at the right, under each other; on a page never broken.
        whole: in the terminal never broken; other cells go on in the next line where there is no room.
        soft: in the terminal dim.
        short: the head in the terminal, where another is.
        only: ``terminal`` or ``page``, where only one of them shows it.
    """

    head: str = ""
    number: bool = False
    whole: bool = False
    soft: bool = False
    short: str = ""
    only: Literal["", "terminal", "page"] = ""


def words(*heads: str) -> list[Column]:
    """Columns of text."""
    return [Column(head) for head in heads]


def numbers(*heads: str, whole: bool = True) -> list[Column]:
    """Columns of numbers."""
    return [Column(head, number=True, whole=whole) for head in heads]


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; rich prints it, and it may stand between the elements of a page.

    Attributes:
        rows: a cell for each column. Text from files is neither markup nor terminal codes.
        title: above it in the terminal, where it then has lines around its cells; a page has headings.
        caption: below it.
        strong: whether the caption is in bold in the terminal.
        gap: characters between columns there.
        marks: by row what is special about it: ``best``, ``front``, ``base`` or ``total``.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    strong: bool = False
    gap: int = 2
    marks: Mapping[int, str] = field(default_factory=dict)

    def __rich__(self) -> table.Table:
        from rich.table import Table as Grid

        from moesim.report.terminal import lines, plain

        columns, rows = self._part("terminal")
        heads = any(column.head for column in columns)
        if self.title:
            grid = Grid(title=plain(self.title, "table.title"), title_justify="left")
        else:
            grid = Grid(
                box=None, pad_edge=False, padding=(0, self.gap, 0, 0), header_style="dim", show_header=heads
            )
        if self.caption:
            grid.caption = plain(self.caption, "bold" if self.strong else "table.caption")
            grid.caption_justify = "left"
        for column in columns:
            grid.add_column(
                # Heads are ours, and may have several lines.
                lines(column.short or column.head),
                justify="right" if column.number else "left",
                no_wrap=column.whole,
                # Cut, a name would be another's.
                overflow="ellipsis" if column.whole else "fold",
                style="dim" if column.soft else None,
            )
        for index, row in enumerate(rows):
            strong = self.marks.get(index) in ("best", "front")
            grid.add_row(*map(plain, row), style="bold" if strong else None)
        return grid

    def __html__(self) -> Markup:
        columns, rows = self._part("page")
        classes = ["n" if column.number else None for column in columns]

        def line(kind: str, cells: Sequence[str], class_: str | None = None) -> Markup:
            pairs = zip(cells, classes, strict=True)
            return tag("tr", *(tag(kind, cell, class_=n) for cell, n in pairs), class_=class_)

        head = tag("thead", line("th", [column.head for column in columns]))
        body = tag("tbody", *(line("td", row, self.marks.get(index)) for index, row in enumerate(rows)))
        note = [tag("p", self.caption, class_="note")] if self.caption else []
        return tag("div", tag("table", head, body), *note, class_="scroll")

    def _part(self, where: str) -> tuple[list[Column], list[list[str]]]:
        """The columns shown there, and their cells by row."""
        kept = [number for number, column in enumerate(self.columns) if column.only in ("", where)]
        return [self.columns[n] for n in kept], [[row[n] for n in kept] for row in self.rows]
