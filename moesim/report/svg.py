"""Inline SVG: shapes with tooltips, and axes with round numbers. Colours come from CSS classes."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

from moesim.report.markup import Markup, tag

WIDTH = 960.0


def figure(height: float, label: str, *children: Markup, caption: str) -> Markup:
    """A figure as wide as the page, ``WIDTH`` units across; ``label`` is read out instead of it."""
    drawing = tag(
        "svg",
        *children,
        viewBox=Markup(f"0 0 {WIDTH:g} {math.ceil(height)}"),
        role="img",
        aria_label=label,
        preserveAspectRatio="xMinYMin meet",
    )
    return tag("figure", tag("div", drawing, class_="scroll"), tag("figcaption", caption))


def rect(x: float, y: float, width: float, height: float, class_: str, tooltip: str | None = None) -> Markup:
    """A box; negative sizes, which only rounding makes, become 0."""
    title = [tag("title", tooltip)] if tooltip is not None else []
    return tag("rect", *title, x=x, y=y, width=max(width, 0.0), height=max(height, 0.0), class_=class_)


def circle(x: float, y: float, radius: float, class_: str, tooltip: str) -> Markup:
    return tag("circle", tag("title", tooltip), cx=x, cy=y, r=radius, class_=class_)


def text(x: float, y: float, content: str, class_: str | None = None, tooltip: str | None = None) -> Markup:
    title = [tag("title", tooltip)] if tooltip is not None else []
    return tag("text", content, *title, x=x, y=y, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


_LEAST = 1e-290
"""Of an axis, whose ticks are powers of ten."""


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``, at most ``most``.

    >>> ticks(0, 28.4, 6)
    [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]
    """
    if not high - low > _LEAST:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def time_axis(
    left: float, right: float, top: float, bottom: float, seconds: float, low: float = 0.0
) -> Markup:
    """Grid lines and labels of a time axis from ``low`` to ``seconds``, with its unit."""
    scale, unit = time_unit(seconds)
    parts: list[str] = []
    for value in ticks(low * scale, seconds * scale):
        x = left + (value / scale - low) / ((seconds - low) or 1.0) * (right - left)
        parts += [line(x, top, x, bottom, "grid"), text(x, bottom + 14, f"{value:g}", "tick middle")]
    parts.append(text(right, bottom + 28, f"time in {unit}", "tick end"))
    return tag("g", *parts)


def time_unit(seconds: float) -> tuple[float, str]:
    """Units per second and the name of the unit in which ``seconds`` reads well.

    >>> time_unit(0.02), time_unit(3e-4)
    ((1000.0, 'ms'), (1000000.0, 'µs'))
    """
    if seconds >= 1:
        return 1.0, "s"
    return (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")


def legend(x: float, y: float, entries: Sequence[tuple[str, str]], step: float | None = None) -> Markup:
    """Boxes with names in one row: (CSS class, name); ``step`` fixes their distance."""
    parts: list[str] = []
    for class_, name in entries:
        parts += [rect(x, y - 9, 11, 11, class_), text(x + 15, y, name, "tick")]
        x += step or 30 + 6.3 * len(name)
    return tag("g", *parts)


def heat(edges: Sequence[float], value: float) -> str:
    """The CSS class of a value, whose colour lies between two of the edges."""
    return f"heat-{bisect.bisect_right(edges, value)}"


def heat_legend(x: float, y: float, edges: Sequence[str], unit: str, between: str, step: float) -> Markup:
    """The colours and their edges; the unit of the outer ones, and what follows the ranges between."""
    names = [f"< {edges[0]} {unit}"]
    names += [f"{low} to {high}{between}" for low, high in itertools.pairwise(edges)]
    names.append(f"≥ {edges[-1]} {unit}")
    return legend(x, y, [(f"heat-{index}", name) for index, name in enumerate(names)], step)
