"""What ``moesim run`` and ``moesim whatif`` print, readable at 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding

from moesim.analysis.result_file import Comparison, Result
from moesim.report.comparison_answer import whatif_answer
from moesim.report.comparison_table import comparison_table, refused_table
from moesim.report.findings import advice, answer
from moesim.report.notes import comparison_notes
from moesim.report.run_table import attribution_table, figure_table, phase_table, stage_table, straggler_table
from moesim.report.table import Table
from moesim.report.terminal import bold, bullets, spaced
from moesim.spec.question import question

# The layers that lose most; the report lists all.
_STRAGGLERS: Final = 5


def run_tables(result: Result) -> list[RenderableType]:
    """Question and answer, figures, where the time goes, stragglers, advice."""
    phases = phase_table(result)
    return spaced(
        [
            question(result.scenario),
            bold(answer(result)),
            figure_table(result),
            stage_table(result.metrics.stages) if result.metrics.stages else None,
            replace(phases, rows=phases.rows[:-1]),
            attribution_table(result),
            _stragglers(result),
            _list("What would help", advice(result)),
            _list("Mind", result.notes),
        ]
    )


def whatif_tables(comparison: Comparison) -> list[RenderableType]:
    """All points, the answer, those that cannot be, and what to mind of it."""
    below = (refused_table(comparison), _list("Mind", comparison_notes(comparison)))
    return [whatif_table(comparison), *(Padding(part, (1, 0, 0, 0)) for part in below if part)]


def whatif_table(comparison: Comparison) -> Table:
    """All points, and the answer below them."""
    table = comparison_table(comparison)
    caption = " ".join(filter(None, (table.caption, whatif_answer(comparison))))
    return replace(table, caption=caption, strong=True)


def _stragglers(result: Result) -> Table | None:
    rows = sorted(result.stragglers, key=lambda row: (-row.lost_s, row.layer))
    more = f"the {_STRAGGLERS} layers of {len(rows)} that lose most" if len(rows) > _STRAGGLERS else ""
    return replace(straggler_table(rows[:_STRAGGLERS]), caption=more) if rows else None


def _list(head: str, lines: Sequence[str]) -> Group | None:
    """Lines whose commands stand between backquotes on a page."""
    return bullets(head, [line.replace("`", "") for line in lines])
