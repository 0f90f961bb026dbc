"""HTML and SVG elements whose text is escaped unless it is markup already."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Protocol

from traces.base.text import visible


class Markup(str):
    """Text that may stand in a page as it is. Everything else is escaped on its way in."""

    __slots__ = ()

    def __html__(self) -> Markup:
        return self


class Element(Protocol):
    """What knows how it stands in a page."""

    def __html__(self) -> Markup: ...


def tag(name: str, *children: str | Element, **attributes: str | float | None) -> Markup:
    """One element.

    Attribute names lose a trailing underscore and change the others to hyphens; ``None`` leaves an
    attribute out. Numbers are written with at most two decimals, so equal pages have equal bytes.

    >>> tag("p", "a < b", class_="note", data_x=1.5)
    '<p class="note" data-x="1.5">a &lt; b</p>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[str | Element], separator: str = "") -> Markup:
    """The children one after the other, each escaped where it is text."""
    return Markup(
        separator.join(
            child.__html__() if hasattr(child, "__html__") else _escape(child) for child in children
        )
    )


def number(value: float) -> str:
    """At most two decimals, no trailing zeros, no minus zero.

    >>> number(2.50), number(3.0), number(-0.001)
    ('2.5', '3', '0')
    """
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _attribute(value: str | float) -> str:
    return value if isinstance(value, str) else number(value)


def _escape(text: str) -> str:
    # Control characters are no legal HTML or XML, whatever the data holds.
    return html.escape(visible(text))
