"""The page of a real run: what it took, rank by rank, and a few layers as they ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moesim.analysis.cube import Cube
from moesim.errors import TimelineError
from moesim.report.execution_table import answer, ran, rank_table
from moesim.report.gantt import gantt
from moesim.report.markup import tag
from moesim.report.page import facts_table, figures_list, opening, page, resolved, section, trace_note
from moesim.spec.question import brief
from moesim.units import format_seconds
from traces.timeline import PHASES, Timeline


def execution_page(result: Mapping[str, Any], timeline: Timeline) -> str:
    """The page.

    Args:
        result: what ``execution.json`` holds.
        timeline: what ``timeline.parquet`` holds.

    Raises:
        TimelineError: the timeline is not this run's.
    """
    _check_fit(result, timeline)
    sections = [
        opening(ran(result), answer(result), trace_note(result["trace"])),
        figures_list(_key_figures(result["metrics"])),
        section("Where each rank's time goes", rank_table(result)),
    ]
    if not result["run"]["serial"]:
        sections.append(section("One step as it ran", gantt(timeline, _stragglers(timeline))))
    if result["notes"]:
        sections.append(section("Mind", tag("ul", *(tag("li", line) for line in result["notes"]))))
    facts = {**result["run"], **result["provenance"]}
    named = [(key.replace("_", " "), brief(value)) for key, value in facts.items()]
    sections.append(section("Where the numbers come from", facts_table(named), resolved(result["scenario"])))
    return page(f"{result['scenario']['name']}: a real run", sections)


def _check_fit(result: Mapping[str, Any], timeline: Timeline) -> None:
    ranks = int(timeline.rank_N.max(initial=-1)) + 1
    if ranks != result["ranks"]:
        raise TimelineError(f"must be of {result['ranks']} ranks", field=timeline.run, got=ranks)


def _key_figures(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Times only where ranks ran together."""
    figures = [
        (name, format_seconds(metrics[key]["mean"]), f"mean; p95 {format_seconds(metrics[key]['p95'])}")
        for name, key in (("a layer", "layer_time_s"), ("a step", "step_time_s"))
        if key in metrics
    ]
    return [
        *figures,
        (
            "straggler ratio",
            f"{metrics['straggler_ratio']['experts_time']:.3f}",
            f"max / mean of expert time; of assignments {metrics['straggler_ratio']['assignments']:.3f}",
        ),
        ("balancedness", f"{metrics['balancedness']:.3f}", "mean / max of assignments"),
    ]


def _stragglers(timeline: Timeline) -> list[dict[str, Any]]:
    """Of each layer of the first repeat the rank whose experts take longest, and how far above the mean."""
    first = timeline.select(timeline.repeat_N == timeline.repeat_N.min())
    if not (first.phase_N == PHASES.index("experts")).any():
        return []
    cube = Cube.of(first)
    seconds_LG = cube.seconds("experts").sum(axis=0)
    lost_L = seconds_LG.max(axis=1) - seconds_LG.mean(axis=1)
    return [
        {"layer": layer, "rank": rank, "lost_s": lost_s, "cause": "experts"}
        for layer, rank, lost_s in zip(
            cube.layers.tolist(), np.argmax(seconds_LG, axis=1).tolist(), lost_L.tolist(), strict=True
        )
    ]
