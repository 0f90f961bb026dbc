"""A table is the same in the terminal and on a page, and text of the data stays text."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from moesim.analysis.result_file import Compared, Comparison
from moesim.report import comparison_table
from moesim.report.markup import join
from moesim.report.table import Column, Table, numbers, words
from moesim.units import format_seconds
from tests.moesim.report_example import example_comparison, example_run, typed
from tests.moesim.test_report_page import Structure

TABLE = Table(
    [*words("name"), *numbers("time", "share"), Column("what it is", soft=True)],
    [["first", "1.00 ms", "31 %", "[bold]one[/bold] :smile:"], ["<second>", "20.0 ms", "–", "[/] & two"]],
    caption="[dim]of a step",
    marks={1: "best"},
)


def printed(table: Table, width: int = 80, *, colour: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system="standard" if colour else None).print(table)
    return out.getvalue()


def test_every_cell_is_shown_by_both_as_it_is() -> None:
    text, found = printed(TABLE), Structure(join([TABLE]))
    for cell in (*(column.head for column in TABLE.columns), *TABLE.rows[0], *TABLE.rows[1], TABLE.caption):
        assert cell in text
        assert cell in found.words
    assert len(found.named("th", "n")) == 2
    assert len(found.named("td", "n")) == 4
    assert len(found.named("tr", "best")) == 1


def test_numbers_stand_at_the_right_and_the_best_row_in_bold() -> None:
    head, first, *_ = printed(TABLE).splitlines()
    assert head.index("time") + len("time") == first.index("1.00 ms") + len("1.00 ms")
    bold = [line for line in printed(TABLE, colour=True).splitlines() if "\x1b[1m" in line]
    assert len(bold) == 1
    assert "second" in bold[0]


@pytest.mark.parametrize("title", ["", "Loads [of] a layer"])
def test_long_names_go_on_in_the_next_line(title: str) -> None:
    table = Table([*words("name"), *numbers("tokens")], [["x" * 50, "1"]], title=title)
    text = printed(table, 30)
    assert text.count("x") == 50
    assert "…" not in text
    assert ("┃" in text) == bool(title)
    assert title in text


def test_a_table_without_heads_has_no_line_for_them() -> None:
    assert printed(Table([Column(), Column(soft=True)], [["a", "b"]])).strip() == "a  b"


def test_a_metric_is_added_to_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    added = comparison_table.Metric("p99", lambda run: format_seconds(run.metrics.step_time_s.p99), "tail")
    monkeypatch.setattr(comparison_table, "METRICS", (*comparison_table.METRICS, added))
    comparison = typed(example_comparison(example_run()[0]))
    assert isinstance(comparison, Comparison)
    table = comparison_table.comparison_table(comparison)
    text, found = printed(table, 120), Structure(join([table]))
    assert text.splitlines()[2].endswith("tail")
    assert "p99" in found.words
    runs: list[Compared] = [comparison.baseline, *comparison.outcomes]
    for run in runs:
        assert added.cell(run) in text
        assert added.cell(run) in found.words
