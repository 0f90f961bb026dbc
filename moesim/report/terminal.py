"""The only way to the terminal's tables: text as it is, lists, and room around them.

rich is given text that is marked as such, never strings, which it would read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from traces.base.text import visible


def terminal(*, stderr: bool = False) -> Console:
    """Where tables are printed; it reads no string as markup, smileys or numbers to colour either."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def plain(text: str, style: str = "") -> Text:
    """Text that may come from anywhere, on one line."""
    return Text(visible(text), style=style)


def lines(text: str) -> Text:
    """The same on the lines that it has."""
    return Text("\n").join(map(plain, text.split("\n")))


def spaced(parts: Iterable[RenderableType | None]) -> list[RenderableType]:
    """The parts with an empty line after each; those that are None or empty text are left out."""
    return [Padding(plain(part) if isinstance(part, str) else part, (0, 0, 1, 0)) for part in parts if part]


def bold(text: str) -> Text:
    """Text that stands out."""
    return plain(text, "bold")


def bullets(head: str, lines: Sequence[str]) -> Group | None:
    """A list under its head; None where there is nothing to list."""
    items = (Padding(plain(f"- {line}"), (0, 1)) for line in lines)
    return Group(bold(head), *items) if lines else None
