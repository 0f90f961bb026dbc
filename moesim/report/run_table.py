"""The tables of a run: its figures, policies, phases, causes and stragglers."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.analysis.culprit import Straggler
from moesim.analysis.result_file import Result, Stage
from moesim.report.figures import key_figures
from moesim.report.findings import CAUSES, PARTS, TERMS
from moesim.report.table import Column, Table, numbers, words
from moesim.units import UNKNOWN, format_number, format_range, format_seconds, format_share
from traces.timeline import PHASES

OF_IT = "of it, "
"""Before the parts of a cause."""


def figure_table(result: Result) -> Table:
    """Key figures and the routing: name, value, and a line that explains it."""
    trace = result.trace
    kind = "generated" if trace.generated else "recorded"
    skew = f"{trace.name}, hottest expert at {trace.skew:.2f} times the mean load"
    rows = [*key_figures(result.metrics), ("routing", kind, skew)]
    drawn = result.intervals
    if drawn is not None:
        note = f"step time in 9 of 10 of {drawn.samples} draws of the profile's figures"
        rows.insert(1, ("between", format_range(drawn.step_time_s, format_seconds), note))
    return Table([*words(""), *numbers(""), Column(soft=True)], rows)


def stage_table(stages: Sequence[Stage]) -> Table:
    """What became of the router's choice after each policy, in the order in which they are applied."""
    shares = ("kept", "rerouted", "dropped", "added", "gate_mass_lost")
    return Table(
        [*words("policy"), *numbers(*(name.replace("_", " ") for name in shares))],
        [[stage.policy, *(format_share(getattr(stage, name)) for name in shares)] for stage in stages],
        caption="after each policy, of the assignments that the router chose",
    )


def phase_table(result: Result) -> Table:
    """Per phase: time on the critical path, its share of the step, the bound, and path over bound.

    The last row is the step; its bound leaves out what phases that overlap may hide.
    """
    step_s, path_s, bounds = result.metrics.step_time_s.mean, result.metrics.phase_time_s, result.bounds
    used = [name for name in PHASES if path_s.get(name) or bounds.get(name)]
    times = [(name.replace("_", " "), path_s.get(name, 0.0), bounds.get(name)) for name in used]
    rows = [
        [
            name,
            format_seconds(seconds),
            format_share(seconds / step_s),
            format_seconds(bound_s),
            f"{seconds / bound_s:.1f}×" if bound_s else "–",
        ]
        for name, seconds, bound_s in [*times, ("step", step_s, _step_at_peak(result))]
    ]
    columns = [*words("phase"), *numbers("critical path", "of the step", "at peak, evenly")]
    ratio = Column("ratio", number=True, only="page")
    return Table([*columns, ratio], rows, marks={len(rows) - 1: "total"})


def _step_at_peak(result: Result) -> float:
    """Seconds of a step whose phases take their bounds: all of them together, less what may overlap."""
    bounds, overlap = result.bounds, result.scenario.get("overlap") or ()
    total_s = sum(bounds.values())
    moved_s = sum(bounds.get(name, 0.0) for name in ("dispatch", "combine"))
    if "two_batch" in overlap:
        return max(moved_s, total_s - moved_s)
    if "shared_expert" in overlap:
        return total_s - min(bounds.get(name, 0.0) for name in ("shared_expert", "dispatch"))
    return total_s


def attribution_table(result: Result, terms: Sequence[str] = tuple(TERMS)) -> Table:
    """What a step loses to each cause, with what each means."""
    step_s, found = result.metrics.step_time_s.mean, result.attribution
    causes = []
    for term in terms:
        if term != "migration" or found.migration_s:
            causes.append((term, found.seconds(term), TERMS[term]))
        if term == "imbalance":
            parts = {part: getattr(found, f"{part}_s") for part in PARTS}
            causes += [
                (f"{OF_IT}{part}", cost_s, PARTS[part])
                for part, cost_s in parts.items()
                if cost_s is not None and format_share(cost_s / step_s) != format_share(0.0)
            ]
    columns = [*words("cause"), *numbers("a step", "of the step")]
    rows = [
        [name, format_seconds(cost_s), format_share(cost_s / step_s), why] for name, cost_s, why in causes
    ]
    if result.intervals is not None:
        columns += numbers("9 of 10 draws")
        for row in rows:
            ends = result.intervals.attribution.get(f"{row[0].removeprefix(OF_IT)}_s")
            row.insert(-1, UNKNOWN if ends is None else format_range(ends, format_seconds))
    return Table([*columns, Column(soft=True)], rows)


def straggler_table(stragglers: Sequence[Straggler]) -> Table:
    """Who holds up each layer and why; a page has that in words."""
    rows = [
        [
            str(row.layer),
            str(row.rank),
            format_seconds(row.lost_s),
            format_share(row.share),
            format_number(row.load),
            format_number(row.time),
            row.cause,
            f"{row.expert} ({format_share(row.expert_share)})",
            CAUSES[row.cause],
        ]
        for row in stragglers
    ]
    columns = [
        *numbers("layer", "GPU", "lost a step"),
        Column("last in", number=True, only="page"),
        *numbers("tokens/mean", "time/mean"),
        Column("cause", only="terminal"),
        Column("hottest expert"),
        Column("why", only="page"),
    ]
    return Table(columns, rows)
