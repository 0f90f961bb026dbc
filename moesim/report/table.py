"""A table, built once and shown both in the terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moesim.report.markup import Markup, tag

if TYPE_CHECKING:
    from rich import table, text


@dataclass(frozen=True)
class Column:
    """A head, and how the cells below it stand.

    Attributes:
        number: at the right, under each other; on a page never broken.
        whole: in the terminal never broken; other cells go on in the next line where there is no room.
        soft: in the terminal dim.
    """

    head: str = ""
    number: bool = False
    whole: bool = False
    soft: bool = False


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
        rows: a cell for each column. Whatever text the data holds is shown as it is.
        title: above it in the terminal, where it then has lines around its cells; a page has headings.
        caption: below it.
        marks: by row what is special about it: ``best``, ``base`` or ``total``.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    marks: Mapping[int, str] = field(default_factory=dict)

    def __rich__(self) -> table.Table:
        from rich.table import Table as Grid

        heads = any(column.head for column in self.columns)
        if self.title:
            grid = Grid(title=_plain(self.title, "table.title"), title_justify="left")
        else:
            grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=heads)
        if self.caption:
            grid.caption, grid.caption_justify = _plain(self.caption, "table.caption"), "left"
        for column in self.columns:
            grid.add_column(
                _plain(column.head),
                justify="right" if column.number else "left",
                no_wrap=column.whole,
                # Cut, a name would be another's.
                overflow="ellipsis" if column.whole else "fold",
                style="dim" if column.soft else None,
            )
        for index, row in enumerate(self.rows):
            grid.add_row(*map(_plain, row), style="bold" if self.marks.get(index) == "best" else None)
        return grid

    def __html__(self) -> Markup:
        classes = ["n" if column.number else None for column in self.columns]
        heads = (tag("th", column.head, class_=n) for column, n in zip(self.columns, classes, strict=True))
        rows = (
            tag(
                "tr",
                *(tag("td", cell, class_=n) for cell, n in zip(row, classes, strict=True)),
                class_=self.marks.get(index),
            )
            for index, row in enumerate(self.rows)
        )
        shown = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
        note = [tag("p", self.caption, class_="note")] if self.caption else []
        return tag("div", shown, *note, class_="scroll")


def _plain(text: str, style: str = "") -> text.Text:
    """Text as it is: rich reads none of it as markup."""
    from rich.text import Text

    return Text(text, style=style)
