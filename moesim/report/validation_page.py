"""The page of a validation: how far off, where, and both timelines above each other."""

from __future__ import annotations

from moesim.analysis.validation import compare
from moesim.analysis.validation_file import ValidationResult
from moesim.report.markup import Markup, tag
from moesim.report.page import figures_list, listed, opening, page, provenance, section, trace_note
from moesim.report.validation_figures import both_timelines, error_map, scatter
from moesim.report.validation_table import (
    answer,
    asked,
    cells,
    layer_table,
    quantity_table,
    rank_table,
    remarks,
)
from moesim.units import format_number
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
            quantity_table(result),
            tag(
                "p",
                "A cell is one step, layer and rank. p95: the 95th percentile over cells. Bias: the median "
                "with its sign. Noise: half of how far the medians of the first and the second half of the "
                "repeats lie apart.",
                class_="note",
            ),
        ),
        section(
            "Rank by rank: expert time of a layer",
            rank_table(result),
            scatter(found),
        ),
        section(
            "Layer by layer",
            error_map(found),
            tag("details", tag("summary", "the layers as a table"), layer_table(result)),
        ),
        section("A step as it ran and as it was simulated", both_timelines(found, measured, simulated)),
        *listed("Mind", remarks(result)),
        provenance(result.provenance, result.scenario),
    ]
    return page(f"{result.scenario['name'] or 'unnamed'}: validation", sections)


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
        ("order of ranks", format_number(tau, 3), "Kendall's tau-b; 1 is the same order"),
        ("measurement", result.verdict, f"{result.repeats} repeats"),
    ]
    return figures_list(figures)
