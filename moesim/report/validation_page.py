"""The page of a validation: how far off, where, and both timelines above each other."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.analysis.validation import compare
from moesim.analysis.validation_file import ValidationResult
from moesim.report.breakdown import table
from moesim.report.markup import Markup, tag
from moesim.report.page import facts_table, figures_list, mind, opening, page, resolved, section, trace_note
from moesim.report.validation_figures import both_timelines, error_map, scatter
from moesim.report.validation_table import (
    QUANTITY_HEAD,
    RANK_HEAD,
    answer,
    asked,
    cells,
    quantity_rows,
    rank_rows,
    remarks,
)
from moesim.units import format_seconds
from traces.timeline import Timeline


def validation_page(result: ValidationResult, measured: Timeline, simulated: Timeline) -> str:
    """The page.

    Args:
        result: what ``validation.json`` holds.
        measured, simulated: what ``measured.parquet`` and ``simulated.parquet`` hold.

    Raises:
        TimelineError: the timelines are not of the same work.
    """
    found = compare(measured, simulated)
    sections = [
        opening(asked(result), answer(result), trace_note(result.trace)),
        _key_figures(result),
        section(
            "How far off: phases, layers and steps",
            tag(
                "p",
                "Seconds: means over cells; a cell is one step, layer and rank, its value the median over "
                "repeats. Error: the median over cells of |simulated − measured| / measured, and its 95th "
                "percentile. Bias: the median with its sign. Noise: how uncertain the measured median is, "
                "half of how far the medians of the first and the second half of the repeats lie apart.",
            ),
            _rows("", QUANTITY_HEAD, quantity_rows(result)),
        ),
        section(
            "Rank by rank: expert time of a layer",
            _rows("rank", RANK_HEAD, rank_rows(result)),
            scatter(found),
        ),
        section("Layer by layer", error_map(found), _layers(result)),
        section("A step as it ran and as it was simulated", both_timelines(found, measured, simulated)),
        *mind(remarks(result)),
        section("Where the numbers come from", facts_table(result.provenance), resolved(result.scenario)),
    ]
    return page(f"{result.scenario['name']}: validation", sections)


def _key_figures(result: ValidationResult) -> Markup:
    error, ratio, tau = result.error, result.straggler_ratio, result.rank_order_tau
    names = {"experts": "of a rank's experts", "layer": "of a layer", "step": "of a step"}
    figures = [
        (
            f"error {what}",
            cells(error[name], ("median",))[0],
            "" if error[name] is None else f"median; 95th percentile {cells(error[name], ('p95',))[0]}",
        )
        for name, what in names.items()
    ]
    figures += [
        (
            "straggler ratio",
            f"{ratio.simulated:.3f}",
            f"max / mean of expert time; measured {ratio.measured:.3f}",
        ),
        ("order of ranks", "–" if tau is None else f"{tau:.3f}", "Kendall's tau-b; 1 is the same order"),
        ("measurement", result.verdict, f"{result.repeats} repeats"),
    ]
    return figures_list(figures)


def _layers(result: ValidationResult) -> Markup:
    rows = [
        [
            str(row.layer),
            format_seconds(row.seconds.measured),
            format_seconds(row.seconds.simulated),
            *(cells(row.error[name], ("median",))[0] for name in ("layer", "experts", "dispatch", "combine")),
        ]
        for row in result.per_layer
    ]
    head = ("measured", "simulated", "error", "of experts", "of dispatch", "of combine")
    return tag("details", tag("summary", "the layers as a table"), _rows("layer", head, rows))


def _rows(first: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    lines = [tag("tr", tag("td", row[0]), *(tag("td", cell, class_="n") for cell in row[1:])) for row in rows]
    return table([first], head, lines)
