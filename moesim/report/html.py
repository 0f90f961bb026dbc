"""The report: one HTML page that opens offline, loads nothing, and can be rebuilt from a run's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from moesim.analysis.culprit import Straggler
from moesim.analysis.result_file import Comparison, Result
from moesim.errors import TimelineError
from moesim.report.breakdown import (
    attribution_table,
    breakdown,
    comparison_chart,
    comparison_table,
    phase_table,
    table,
)
from moesim.report.figures import key_figures
from moesim.report.findings import CAUSES, advice, answer, percent, shares, varied_keys, whatif_answer
from moesim.report.gantt import gantt
from moesim.report.heatmap import heatmap
from moesim.report.markup import Markup, join, tag
from moesim.report.notes import comparison_notes
from moesim.report.page import facts_table, figures_list, mind, opening, page, resolved, section, trace_note
from moesim.report.stages import stage_table
from moesim.spec.question import question
from moesim.units import format_seconds
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
    steps = len(np.unique((timeline.repeat_N.astype(np.int64) << 32) | timeline.step_N))
    sections = [
        opening(question(result.scenario), answer(result), trace_note(result.trace)),
        _key_figures(result),
        _advice(result),
        section(
            "Who gets the work: assignments by layer and GPU",
            heatmap(timeline, work, gpus, min(cluster["gpus_per_node"], gpus), steps),
        ),
        section("Where the time goes", breakdown(result), phase_table(result), attribution_table(result)),
        *_stages(result),
        section("The stragglers", _stragglers(result)),
        section("One step as it runs", gantt(timeline, result.stragglers)),
    ]
    if comparison is not None:
        sections.append(_comparison(comparison))
    sections += mind(result.notes)
    sections.append(_provenance(result))
    return page(str(result.scenario["name"]), sections)


def _stages(result: Result) -> list[Markup]:
    stages = result.metrics.stages
    return [section("What the policies did to the router's choice", stage_table(stages))] if stages else []


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
    keys = " or ".join(varied_keys(comparison).values())
    asked = question(base.scenario)[:-1] + f", and what if {keys} were another?"
    sections = [
        opening(asked, whatif_answer(comparison), trace_note(base.trace)),
        section("The points, fastest first", comparison_chart(comparison), comparison_table(comparison)),
        section("The scenario itself", tag("p", answer(base)), breakdown(base), phase_table(base)),
        *mind(comparison_notes(comparison)),
        _provenance(base),
    ]
    return page(f"{base.scenario['name']}: what if", sections)


def _key_figures(result: Result) -> Markup:
    cost = f"{format_seconds(result.attribution.imbalance_s)} of a step"
    imbalance = ("imbalance", percent(shares(result)["imbalance"]), cost)
    step, *others = key_figures(result.metrics)
    return figures_list([step, imbalance, *others])


def _advice(result: Result) -> Markup:
    lines = advice(result)
    if not lines:
        return section("What would help", tag("p", "Nothing that this run shows is worth changing."))
    return section("What would help", tag("ul", *(tag("li", _with_code(line)) for line in lines)))


def _with_code(line: str) -> Markup:
    """Text whose parts between backquotes become code."""
    parts = line.split("`")
    return join(tag("code", part) if index % 2 else part for index, part in enumerate(parts))


def _stragglers(result: Result) -> Markup:
    rows = sorted(result.stragglers, key=lambda row: (-row.lost_s, row.layer))
    if not rows:
        return tag("p", "No layer has a straggler.", class_="note")
    parts = [
        tag(
            "p",
            "The GPU that is most often the last to finish its experts, for each layer; where most is lost "
            "before the dispatch, the last to enter it. Lost: what a GPU waits in this layer in a mean step; "
            "one that is late in a layer may make up for it in the next, so the sum can exceed the cost of "
            "imbalance. Last in: the part of the steps. Tokens and time of its experts: in these steps, over "
            "the mean of all GPUs.",
        ),
        _straggler_table(rows[:_FIRST_STRAGGLERS]),
    ]
    if len(rows) > _FIRST_STRAGGLERS:
        rest = rows[_FIRST_STRAGGLERS:]
        parts.append(tag("details", tag("summary", f"{len(rest)} more layers"), _straggler_table(rest)))
    return join(parts)


def _straggler_table(rows: list[Straggler]) -> Markup:
    lines = []
    for row in rows:
        numbers = [
            str(row.layer),
            str(row.rank),
            format_seconds(row.lost_s),
            percent(row.share),
            f"{row.load:.2f}×",
            f"{row.time:.2f}×",
        ]
        why = CAUSES[row.cause]
        if row.cause == "tokens":
            why += f", {percent(row.expert_share)} of them for expert {row.expert}"
        lines.append(tag("tr", *(tag("td", cell, class_="n") for cell in numbers), tag("td", why)))
    head = ["layer", "GPU", "lost", "last in", "tokens", "time"]
    return table([], head, lines, ["why"])


def _comparison(comparison: Comparison) -> Markup:
    return section(
        "What if",
        tag("p", whatif_answer(comparison)),
        comparison_chart(comparison),
        comparison_table(comparison),
    )


def _provenance(result: Result) -> Markup:
    """Where the numbers come from: every entry of the provenance, and the resolved scenario."""
    trace = result.trace
    facts = {"trace": f"{trace.name}: {trace.origin or 'origin not stated'}", **result.provenance}
    # The wall time differs from run to run and would make equal runs' pages differ.
    facts = {key: value for key, value in facts.items() if key not in ("wall_s", "command")}
    return section(
        "Where the numbers come from",
        tag(
            "p",
            "Simulated, not measured: work counted from the routing trace, times from the hardware profile "
            "named here. Made by ",
            tag("code", str(result.provenance.get("command", "moesim run scenario.yaml"))),
            "; the same command with the same versions gives the same numbers.",
        ),
        facts_table(facts),
        *_profile_sources(result.scenario.get("profile", {}).get("sources", {})),
        resolved(result.scenario),
    )


def _profile_sources(sources: Mapping[str, str]) -> list[Markup]:
    """What of the profile was fitted, and what is assumed; empty where it does not say."""
    if not sources:
        return []
    rows = [tag("tr", tag("td", key.replace("_", " ")), tag("td", source)) for key, source in sources.items()]
    return [table(["of the profile", "where it comes from"], [], rows)]
