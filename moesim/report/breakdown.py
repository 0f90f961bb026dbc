"""Where the time goes: the critical path beside its bounds and the attribution, and compared points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from moesim.analysis.result_file import Compared, Comparison, Result
from moesim.report import svg
from moesim.report.comparison_table import names, ranked
from moesim.report.findings import TERMS
from moesim.report.markup import Markup, tag
from moesim.report.point_names import speedup
from moesim.units import format_seconds, format_share
from traces.timeline import PHASES

# A comparison's chart ends here; its table holds every point.
MOST_BARS: Final = 40
_BAR, _STEP = 26.0, 44.0
# Fills on which white letters are hard to read, in both themes.
_LIGHT_FILLS: Final = frozenset({"combine", "wait", "shared_expert", "router"})


def breakdown(result: Result) -> Markup:
    """Three stacked bars over one time axis: critical path, peak rates, attribution."""
    metrics, bounds = result.metrics, result.bounds
    phases = {name: metrics.phase_time_s.get(name, 0.0) for name in PHASES}
    attribution = {term: result.attribution.seconds(term) for term in TERMS}
    bars: list[tuple[str, Mapping[str, float]]] = [
        ("critical path", phases),
        ("at peak, evenly", {name: bounds[name] for name in PHASES if name in bounds}),
        ("attribution", attribution),
    ]
    used = [name for name in PHASES if phases[name] or bounds.get(name)]
    left, right, top = 110.0, svg.WIDTH - 14, 8.0
    low, high = _range([values for _, values in bars])
    bottom = top + _STEP * len(bars)
    parts = [svg.time_axis(left, right, top, bottom, high, low)]
    for row, (name, values) in enumerate(bars):
        y = top + row * _STEP + (_STEP - _BAR) / 2
        parts.append(svg.text(left - 8, y + 17, name, "end"))
        parts.append(_stack(values, left, right, y, low, high))
    parts.append(svg.legend(left, bottom + 46, [(name, name.replace("_", " ")) for name in used]))
    parts.append(svg.legend(left, bottom + 66, [(term, term) for term in TERMS]))
    return svg.figure(
        bottom + 76,
        "Stacked bars of the time of a step: critical path, peak rates, attribution",
        *parts,
        caption=(
            "One mean step. Critical path: the phases that the step's end waited for; they sum to the step. "
            "At peak: the same work spread evenly over all GPUs at the data sheets' peak rates, one phase "
            "after the other; on the path a phase can be shorter than that, where it overlaps with others, "
            "where bytes travel before the last GPU is there, or where the path runs over GPUs that have "
            "less of it. "
            "Attribution: what the step loses to each cause, from simulations of the same steps without it."
        ),
    )


def comparison_chart(comparison: Comparison) -> Markup:
    """A bar for the scenario and for each point, best first, stacked by attribution."""
    order = ranked(comparison)
    asked, *named = names(comparison)
    entries: list[tuple[str, str, Compared]] = [(asked, "", comparison.baseline)]
    drawn = zip(named, order[:MOST_BARS], strict=False)
    entries += [(name, speedup(point), point) for name, point in drawn]
    left, right, top, step = 292.0, svg.WIDTH - 64, 8.0, 26.0
    stacks = [{term: point.attribution.seconds(term) for term in TERMS} for _, _, point in entries]
    low, high = _range(stacks)
    bottom = top + step * len(entries)
    parts = [svg.time_axis(left, right, top, bottom, high, low)]
    for row, (name, factor, _) in enumerate(entries):
        y = top + row * step + 4
        short = name if len(name) <= 40 else name[:39] + "…"
        parts.append(svg.text(left - 8, y + 13, short, "end strong" if row == 1 else "end", name))
        parts.append(_stack(stacks[row], left, right, y, low, high, height=step - 8))
        parts.append(svg.text(svg.WIDTH - 4, y + 13, factor, "end strong" if row == 1 else "end"))
    parts.append(svg.legend(left, bottom + 46, [(term, term) for term in TERMS]))
    hidden = len(order[MOST_BARS:])
    return svg.figure(
        bottom + 56,
        "Bars of the step time of every compared point, stacked by attribution",
        *parts,
        caption="Time of a mean step by cause, in the order of the table; on the right the tokens a second, "
        "over those of the scenario." + (f" {hidden} points are in the table only." if hidden else ""),
    )


def _range(stacks: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """The ends of an axis that holds every stack: negative parts reach left of 0."""
    low = min(sum(value for value in stack.values() if value < 0) for stack in stacks)
    high = max(sum(value for value in stack.values() if value > 0) for stack in stacks)
    return float(low), float(high) if high > low else float(low) + 1.0


def _stack(
    values: Mapping[str, float],
    left: float,
    right: float,
    y: float,
    low: float,
    high: float,
    height: float = _BAR,
) -> Markup:
    """One stacked bar; parts below zero grow from zero to the left."""
    scale = (right - left) / (high - low)
    zero = left - low * scale
    ends = {True: zero, False: zero}
    total = sum(values.values())
    parts: list[Markup] = []
    for name, value in values.items():
        if not value:
            continue
        wide, ahead = abs(value) * scale, value > 0
        x = ends[ahead] if ahead else ends[ahead] - wide
        ends[ahead] += wide if ahead else -wide
        label = name.replace("_", " ")
        tooltip = f"{label}: {format_seconds(value)}" + (f", {format_share(value / total)}" if total else "")
        parts.append(svg.rect(x, y, wide - 0.5, height, name, tooltip))
        shown = next((t for t in (f"{label} {format_seconds(value)}", label) if 6.4 * len(t) + 6 < wide), "")
        if shown:
            class_ = "inside dark" if name in _LIGHT_FILLS else "inside"
            parts.append(svg.text(x + wide / 2, y + height / 2 + 4, shown, class_))
    return tag("g", *parts)
