"""The page of a real run: what it took, rank by rank, and a few layers as they ran."""

from __future__ import annotations

from moesim.analysis.execution_file import ExecutionMetrics, ExecutionResult
from moesim.analysis.stragglers import slowest
from moesim.errors import TimelineError
from moesim.report.execution_table import answer, ran, rank_table
from moesim.report.gantt import gantt
from moesim.report.page import figures_list, listed, opening, page, provenance, section, trace_note
from moesim.units import format_seconds
from traces.timeline import Timeline


def execution_page(result: ExecutionResult, timeline: Timeline) -> str:
    """The page.

    Args:
        result: what ``execution.json`` holds.
        timeline: what ``timeline.parquet`` holds.

    Raises:
        TimelineError: the timeline is not this run's.
    """
    _check_fit(result, timeline)
    sections = [
        opening(ran(result), answer(result), trace_note(result.trace)),
        figures_list(_key_figures(result.metrics)),
        section("Where each rank's time goes", rank_table(result)),
    ]
    if not result.run["serial"]:
        sections.append(section("One step as it ran", gantt(timeline, slowest(timeline))))
    sections += listed("Mind", result.notes)
    sections.append(provenance({**result.run, **result.provenance}, result.scenario))
    return page(f"{result.scenario['name'] or 'unnamed'}: a real run", sections)


def _check_fit(result: ExecutionResult, timeline: Timeline) -> None:
    ranks = int(timeline.rank_N.max(initial=-1)) + 1
    if ranks != result.ranks:
        raise TimelineError(f"must be of {result.ranks} ranks", field=timeline.run, got=ranks)


def _key_figures(metrics: ExecutionMetrics) -> list[tuple[str, str, str]]:
    """Times only where ranks ran together."""
    figures = [
        (name, format_seconds(time.mean), f"mean; p95 {format_seconds(time.p95)}")
        for name, time in (("a layer", metrics.layer_time_s), ("a step", metrics.step_time_s))
        if time is not None
    ]
    return [
        *figures,
        (
            "straggler ratio",
            f"{metrics.straggler_ratio.experts_time:.3f}",
            f"max / mean of expert time; of assignments {metrics.straggler_ratio.assignments:.3f}",
        ),
        ("balancedness", f"{metrics.balancedness:.3f}", "mean / max of assignments"),
    ]
