"""The report: one HTML page that opens offline, loads nothing, and can be rebuilt from a run's files."""

from __future__ import annotations

from typing import Final

import numpy as np

from moesim.analysis.result_file import Comparison, Result
from moesim.errors import TimelineError
from moesim.report.breakdown import breakdown, comparison_chart
from moesim.report.comparison_answer import whatif_answer
from moesim.report.comparison_table import comparison_table, refused_table
from moesim.report.figures import key_figures
from moesim.report.findings import TERMS, advice, answer, shares
from moesim.report.front import front_chart
from moesim.report.gantt import gantt
from moesim.report.heatmap import heatmap
from moesim.report.markup import Element, Markup, join, tag
from moesim.report.notes import comparison_notes
from moesim.report.page import figures_list, listed, opening, page, provenance, section, trace_note
from moesim.report.point_names import Varied, baseline_named
from moesim.report.run_table import attribution_table, phase_table, stage_table, straggler_table
from moesim.report.table import Table, words
from moesim.spec.question import question
from moesim.units import format_seconds, format_share
from traces.timeline import Timeline, WorkTable

# Rows of stragglers before the fold; the rest opens on a click.
_FIRST_STRAGGLERS: Final = 12
# The heat map has a row for each; the deepest models have a few hundred.
_MOST_LAYERS: Final = 2000


def run_page(
    result: Result,
    timeline: Timeline,
    work: WorkTable,
    comparison: Comparison | None = None,
) -> str:
    """The page of one run, and of a comparison with it as baseline where there is one.

    Args:
        result: what ``result.json`` holds.
        timeline, work: what ``timeline.parquet`` and ``work.parquet`` hold.
        comparison: what ``whatif --json`` prints.

    Raises:
        TimelineError: the timeline is not this result's.
    """
    cluster, gpus = result.scenario["cluster"], result.scenario["parallelism"]["ep"]
    _check_fit(timeline, gpus)
    stages = result.metrics.stages
    cost = f"{format_seconds(result.attribution.imbalance_s)} of a step"
    step, *others = key_figures(result.metrics)
    steps = len(np.unique((timeline.repeat_N.astype(np.int64) << 32) | timeline.step_N))
    sections = [
        opening(question(result.scenario), answer(result), trace_note(result.trace)),
        figures_list([step, ("imbalance", format_share(shares(result)["imbalance"]), cost), *others]),
        _advice(result),
        section(
            "Who gets the work: assignments by layer and GPU",
            heatmap(timeline, work, gpus, min(cluster["gpus_per_node"], gpus), steps),
        ),
        section("Where the time goes", breakdown(result), phase_table(result), _attribution(result)),
        *([section("What the policies did to the router's choice", stage_table(stages))] if stages else []),
        section("The stragglers", _stragglers(result)),
        section("One step as it runs", gantt(timeline, result.stragglers)),
    ]
    if comparison is not None:
        sections.append(_comparison(comparison))
    sections += listed("Mind", result.notes)
    sections.append(_provenance(result))
    return page(str(result.scenario["name"] or "unnamed"), sections)


def _check_fit(timeline: Timeline, gpus: int) -> None:
    """Refuse a timeline of another run, or of a shape that no page could show."""
    ranks = int(timeline.rank_N.max(initial=-1)) + 1
    if ranks > gpus:
        raise TimelineError(f"must be below {gpus}, the GPUs of the scenario", field="rank", got=ranks - 1)
    layers = len(np.unique(timeline.layer_N))
    if layers > _MOST_LAYERS:
        raise TimelineError(f"must name at most {_MOST_LAYERS} layers", field="layer", got=layers)


def whatif_page(comparison: Comparison) -> str:
    """The page of a comparison alone."""
    base = comparison.baseline
    keys = " or ".join(Varied.of(comparison).heads.values())
    asked = question(base.scenario)[:-1] + f", and what if {keys} were another?"
    sections = [
        opening(asked, whatif_answer(comparison), trace_note(base.trace)),
        section(
            "The points, best first",
            *front_chart(comparison),
            comparison_chart(comparison),
            comparison_table(comparison),
        ),
        *_refused(comparison),
        section(_baseline(comparison), tag("p", answer(base)), breakdown(base), phase_table(base)),
        *listed("Mind", comparison_notes(comparison)),
        _provenance(base),
    ]
    return page(f"{base.scenario['name'] or 'unnamed'}: what if", sections)


def _advice(result: Result) -> Markup:
    lines = [_with_code(line) for line in advice(result)]
    nothing = section("What would help", tag("p", "Nothing that this run shows is worth changing."))
    return next(iter(listed("What would help", lines)), nothing)


def _with_code(line: str) -> Markup:
    """Text whose parts between backquotes become code."""
    parts = line.split("`")
    return join(tag("code", part) if index % 2 else part for index, part in enumerate(parts))


def _attribution(result: Result) -> Table:
    """The largest cause first."""
    return attribution_table(result, sorted(TERMS, key=lambda term: -result.attribution.seconds(term)))


def _stragglers(result: Result) -> Markup:
    rows = sorted(result.stragglers, key=lambda row: (-row.lost_s, row.layer))
    if not rows:
        return tag("p", "No layer has a straggler.", class_="note")
    parts: list[Element] = [
        tag(
            "p",
            "The GPU that is most often the last to finish its experts, for each layer; where most is lost "
            "before the dispatch, the last to enter it. Lost: what a GPU waits in this layer in a mean step; "
            "one that is late in a layer may make up for it in the next, so the sum can exceed the cost of "
            "imbalance. Last in: the part of the steps. Tokens and time of its experts: in these steps, over "
            "the mean of all GPUs.",
        ),
        straggler_table(rows[:_FIRST_STRAGGLERS]),
    ]
    if len(rows) > _FIRST_STRAGGLERS:
        rest = rows[_FIRST_STRAGGLERS:]
        parts.append(tag("details", tag("summary", f"{len(rest)} more layers"), straggler_table(rest)))
    return join(parts)


def _comparison(comparison: Comparison) -> Markup:
    return section(
        "What if",
        tag("p", whatif_answer(comparison)),
        *front_chart(comparison),
        comparison_chart(comparison),
        comparison_table(comparison),
        *([refused] if (refused := refused_table(comparison)) else []),
    )


def _refused(comparison: Comparison) -> list[Markup]:
    """What cannot be, under its own heading; nothing where everything can."""
    table = refused_table(comparison)
    return [section("What cannot be", table)] if table else []


def _baseline(comparison: Comparison) -> str:
    if comparison.infeasible is None:
        return "The scenario itself"
    return f"What points are compared with: {baseline_named(comparison)}"


def _provenance(result: Result) -> Markup:
    """Where the numbers come from, and what of the profile was fitted or is assumed, where it says so."""
    trace, sources = result.trace, result.scenario.get("profile", {}).get("sources", {})
    # The wall time differs from run to run and would make equal runs' pages differ.
    facts = {key: value for key, value in result.provenance.items() if key not in ("wall_s", "command")}
    said = tag(
        "p",
        "Simulated, not measured: work counted from the routing trace, times from the hardware profile "
        "named here. Made by ",
        tag("code", str(result.provenance.get("command", "moesim run scenario.yaml"))),
        "; the same command with the same versions gives the same numbers.",
    )
    rows = [(key.replace("_", " "), source) for key, source in sources.items()]
    return provenance(
        {"trace": f"{trace.name}: {trace.origin or 'origin not stated'}", **facts},
        result.scenario,
        before=[said],
        after=[Table(words("of the profile", "where it comes from"), rows)] if rows else [],
    )
