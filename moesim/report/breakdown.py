"""Where the time goes: the critical path beside its bounds and the attribution, and compared points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from moesim.analysis.result_file import Compared, Comparison, Outcome, Result
from moesim.report import svg
from moesim.report.findings import (
    DATA_PARALLEL,
    SMALL,
    TERMS,
    best_point,
    percent,
    rebalances,
    shares,
    slow_gpu,
    speedup,
    steps,
    tried,
    varied_keys,
)
from moesim.report.markup import Markup, tag
from moesim.spec.question import brief
from moesim.units import format_bytes, format_seconds
from traces.timeline import PHASES

_Cell = Callable[[Compared], str]

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
            "Attribution: what the step loses to each cause, from five simulations of the same steps."
        ),
    )


def phase_table(result: Result) -> Markup:
    """Per phase: time on the critical path, its share of the step, the bound, and path over bound.

    The bound of the step leaves out what phases that overlap may hide.
    """
    metrics, bounds = result.metrics, result.bounds
    step_s = metrics.step_time_s.mean
    rows = []
    for name in PHASES:
        path_s, bound_s = metrics.phase_time_s.get(name, 0.0), bounds.get(name)
        if not path_s and not bound_s:
            continue
        cells = [format_seconds(path_s), percent(path_s / step_s)]
        cells.append("–" if bound_s is None else format_seconds(bound_s))
        cells.append(f"{path_s / bound_s:.1f}×" if bound_s else "–")
        rows.append(
            tag("tr", tag("td", name.replace("_", " ")), *(tag("td", cell, class_="n") for cell in cells))
        )
    total_s = _step_at_peak(result)
    cells = [format_seconds(step_s), "100 %", format_seconds(total_s)]
    cells.append(f"{step_s / total_s:.1f}×" if total_s else "–")
    rows.append(
        tag("tr", tag("td", "step"), *(tag("td", cell, class_="n") for cell in cells), class_="total")
    )
    return table(["phase"], ["critical path", "of the step", "at peak, evenly", "ratio"], rows)


def _step_at_peak(result: Result) -> float:
    """Seconds of a step whose phases take their bounds: all of them together, less what may overlap."""
    bounds: Mapping[str, float] = result.bounds
    overlap = result.scenario.get("overlap") or ()
    total_s = sum(bounds.values())
    moved_s = sum(bounds.get(name, 0.0) for name in ("dispatch", "combine"))
    if "two_batch" in overlap:
        return max(moved_s, total_s - moved_s)
    if "shared_expert" in overlap:
        return total_s - min(bounds.get(name, 0.0) for name in ("shared_expert", "dispatch"))
    return total_s


def attribution_table(result: Result) -> Markup:
    """The five terms, largest first, with what each means."""
    step_s = result.metrics.step_time_s.mean
    seconds = {term: result.attribution.seconds(term) for term in TERMS}
    entries = [(term, seconds[term], TERMS[term]) for term in sorted(TERMS, key=lambda term: -seconds[term])]
    data_s = result.data_parallel_imbalance_s
    if percent(data_s / step_s) not in _NOTHING:
        after = next(i for i, (term, _, _) in enumerate(entries) if term == "imbalance") + 1
        entries.insert(after, (DATA_PARALLEL[0], data_s, DATA_PARALLEL[1]))
    rows = [
        tag(
            "tr",
            tag("td", name),
            tag("td", format_seconds(cost_s), class_="n"),
            tag("td", percent(cost_s / step_s), class_="n"),
            tag("td", meaning),
        )
        for name, cost_s, meaning in entries
    ]
    return table(["cause"], ["a step", "of the step"], rows, ["what it is"])


def comparison_chart(comparison: Comparison) -> Markup:
    """A bar for the scenario and for each point, fastest first, stacked by attribution."""
    order = by_speedup(comparison)
    keys = varied_keys(comparison)
    names = [
        [", ".join(f"{keys[key]}={brief(value)}" for key, value in point.vary.items())]
        for point in comparison.points
    ]
    (asked,) = asked_cells(comparison, names, 1)
    entries: list[tuple[str, str, Compared]] = [(asked, "", comparison.baseline)]
    entries += [(names[index][0], speedup(point), point) for index, point in order[:MOST_BARS]]
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
        caption="Time of a mean step by cause, fastest first; on the right the speedup over the scenario."
        + (f" {hidden} slower points are in the table only." if hidden else ""),
    )


def comparison_table(comparison: Comparison) -> Markup:
    """Every point and the scenario itself: time, speedup, balance, what policy and rebalancing cost.

    A cost that no point has gets no column, nor do GPUs and memory that are the same with all.
    """
    best = best_point(comparison)
    keys = varied_keys(comparison)
    points: tuple[Compared, ...] = (comparison.baseline, *comparison.points)
    costs: dict[str, _Cell] = {
        name: cell for name, cell in _HARDWARE.items() if len({cell(point) for point in points}) > 1
    }
    costs |= {
        name: cell for name, cell in _COSTS.items() if any(cell(point) not in _NOTHING for point in points)
    }
    names = [
        [brief(point.vary[key]) if key in point.vary else "" for key in keys] for point in comparison.points
    ]
    asked = asked_cells(comparison, names, len(keys))
    rows = [_point_row(asked, "1.00×", comparison.baseline, "base", costs.values())]
    rows += [
        _point_row(names[index], speedup(point), point, "best" if index == best else None, costs.values())
        for index, point in by_speedup(comparison)
    ]
    head = ["step", "speedup", "tokens/s", "balance", "imbalance", "network", *costs]
    return table(list(keys.values()) or [""], head, rows)


def group(run: Compared) -> str:
    """GPUs of the expert-parallel group."""
    return "–" if run.gpus is None else f"{run.gpus:,}"


def memory(point: Compared) -> str:
    """Weights and KV cache of the fullest GPU."""
    return format_bytes(point.metrics.gpu_memory_bytes.max)


def mass_lost(point: Compared) -> str:
    """Gate weights of what was dropped, of all, where the trace has weights."""
    lost = point.metrics.gate_mass_lost
    return "–" if lost is None else percent(lost)


def slow_hardware(point: Compared) -> str:
    """What of a step it costs, and which GPU's it is."""
    share = shares(point)["hardware"]
    return "–" if share < SMALL else ", ".join(filter(None, (percent(share), slow_gpu(point))))


def moving(point: Compared) -> str:
    """By how much the mean step is longer because experts move."""
    return format_seconds(point.metrics.rebalancing.migration_s) if rebalances(point) else "–"


def pays_after(point: Compared) -> str:
    """When a rebalance is won back, if it is known to be."""
    payback = point.payback_steps if isinstance(point, Outcome) else None
    return "–" if payback is None else steps(payback)


_HARDWARE: Final[Mapping[str, _Cell]] = {"GPUs": group, "memory": memory}
_COSTS: Final[Mapping[str, _Cell]] = {
    "dropped": lambda point: percent(point.metrics.dropped),
    "rerouted": lambda point: percent(point.metrics.rerouted),
    "added": lambda point: percent(point.metrics.added),
    "gate mass lost": mass_lost,
    "slow hardware": slow_hardware,
    "moving experts": moving,
    "pays after": pays_after,
}
_NOTHING: Final = (percent(0.0), "–")


def by_speedup(comparison: Comparison) -> list[tuple[int, Outcome]]:
    """The points with their indices, fastest first; equals keep their order. The scenario itself is none."""
    return sorted(tried(comparison), key=lambda item: -item[1].speedup)


def asked_cells(comparison: Comparison, cells: Sequence[Sequence[str]], columns: int) -> tuple[str, ...]:
    """The cells that name the scenario itself: with its values, where a point has them too.

    Args:
        cells: those of each point.
    """
    for point, (first, *others) in zip(comparison.points, cells, strict=True):
        if point.as_asked:
            return f"as asked: {first}", *others
    return "as asked", *[""] * (columns - 1)


def table(
    left: Sequence[str], numbers: Sequence[str], rows: Sequence[Markup], right: Sequence[str] = ()
) -> Markup:
    """A table whose columns are text, then numbers, then text again."""
    head = [tag("th", name) for name in left] + [tag("th", name, class_="n") for name in numbers]
    head += [tag("th", name) for name in right]
    return tag("div", tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows)), class_="scroll")


def _point_row(
    names: Sequence[str], factor: str, point: Compared, class_: str | None, costs: Iterable[_Cell]
) -> Markup:
    metrics, attribution = point.metrics, point.attribution
    cells = [
        format_seconds(metrics.step_time_s.mean),
        factor,
        f"{metrics.tokens_per_s:,.0f}",
        f"{metrics.balancedness:.2f}",
        format_seconds(attribution.imbalance_s),
        format_seconds(attribution.network_s),
        *(cell(point) for cell in costs),
    ]
    varied = [tag("td", name) for name in names]
    return tag("tr", *varied, *(tag("td", cell, class_="n") for cell in cells), class_=class_)


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
        tooltip = f"{label}: {format_seconds(value)}" + (f", {percent(value / total)}" if total else "")
        parts.append(svg.rect(x, y, wide - 0.5, height, name, tooltip))
        shown = next((t for t in (f"{label} {format_seconds(value)}", label) if 6.4 * len(t) + 6 < wide), "")
        if shown:
            class_ = "inside dark" if name in _LIGHT_FILLS else "inside"
            parts.append(svg.text(x + wide / 2, y + height / 2 + 4, shown, class_))
    return tag("g", *parts)
