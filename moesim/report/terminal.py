"""What tables stand between in the terminal: text as it is, lists, and room around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from moesim.report.table import Table

Part = str | Table | RenderableType


def spaced(parts: Iterable[Part | None]) -> list[RenderableType]:
    """The parts with an empty line after each; those that are None or empty text are left out."""
    return [Padding(Text(part) if isinstance(part, str) else part, (0, 0, 1, 0)) for part in parts if part]


def bold(text: str) -> Text:
    """Text that stands out."""
    return Text(text, style="bold")


def bullets(head: str, lines: Sequence[str]) -> Group | None:
    """A list under its head; None where there is nothing to list."""
    items = (Padding(Text(f"- {line}"), (0, 1)) for line in lines)
    return Group(bold(head), *items) if lines else None
