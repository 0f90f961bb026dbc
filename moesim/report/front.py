"""Points with other loads as a picture: tokens a second and GPU against latency, and the front."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from moesim.analysis.ranking import BASE, decodes, latency_s, per_gpu, rank, tried
from moesim.analysis.result_file import Comparison
from moesim.report import svg
from moesim.report.markup import Markup
from moesim.report.ranked_answer import LATENCY, name_of, run_of
from moesim.units import format_count, format_seconds

_HEIGHT: Final = 340.0
# Names beside so many points of the front; a tooltip has every one.
_NAMED: Final = 12


def front_chart(comparison: Comparison) -> list[Markup]:
    """The figure; nothing where all points have the same load."""
    front = rank(comparison).front
    if not front:
        return []
    latency = LATENCY[decodes(comparison)]
    numbers = [BASE, *(number for number, _ in tried(comparison))]
    at = {n: (latency_s(run_of(comparison, n)), per_gpu(comparison, run_of(comparison, n))) for n in numbers}
    left, right, top, bottom = 74.0, svg.WIDTH - 14, 10.0, _HEIGHT - 40
    most_s, most = (1.06 * max(values) for values in zip(*at.values(), strict=True))
    place = {
        n: (left + x_s / most_s * (right - left), bottom - rate / most * (bottom - top))
        for n, (x_s, rate) in at.items()
    }
    parts = [svg.time_axis(left, right, top, bottom, most_s)]
    for value in svg.ticks(0, most, 6):
        y = bottom - value / most * (bottom - top)
        parts += [svg.line(left, y, right, y, "grid"), svg.text(left - 6, y + 4, f"{value:,g}", "tick end")]
    parts.append(svg.text(left, bottom + 28, "tokens/s/GPU", "tick end"))
    parts += _steps([place[n] for n in front])
    for n, (x, y) in place.items():
        told = (
            f"{name_of(comparison, n)}: {format_count(at[n][1])} tokens/s/GPU at {format_seconds(at[n][0])}"
        )
        parts.append(svg.circle(x, y, 5 if n in front else 3.5, "ideal" if n in front else "bar", told))
    for n in front[:_NAMED]:
        name = name_of(comparison, n)
        x, y = place[n]
        end = x > (left + right) / 2
        short = name if len(name) <= 48 else name[:47] + "…"
        parts.append(svg.text(x + (-8 if end else 8), y - 6, short, "tick end" if end else "tick"))
    caption = (
        f"Tokens a second of each GPU against {latency}, of a mean step. The line joins the runs that no "
        "other beats in both: what lies below and to the right of it has no advantage."
    )
    return [svg.figure(_HEIGHT, f"Tokens/s/GPU against {latency} of every run", *parts, caption=caption)]


def _steps(corners: Iterable[tuple[float, float]]) -> list[Markup]:
    """The front as a stair: what a latency allows, until the next point allows more."""
    lines: list[Markup] = []
    for (x, y), (after, above) in itertools.pairwise(corners):
        lines += [svg.line(x, y, after, y, "bound"), svg.line(after, y, after, above, "bound")]
    return lines
