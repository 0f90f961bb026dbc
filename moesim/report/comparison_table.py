"""The table of a comparison: the scenario itself and every point, and what tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from moesim.analysis.result_file import Compared, Comparison, Outcome
from moesim.report.comparison_answer import (
    best_point,
    named_vary,
    rebalances,
    slow_gpu,
    speedup,
    steps,
    tried,
    varied_keys,
    vary,
)
from moesim.report.findings import SMALL, shares
from moesim.report.table import Column, Table, numbers, words
from moesim.spec.question import brief, plural
from moesim.units import UNKNOWN, format_bytes, format_count, format_number, format_seconds, format_share

# What the columns of numbers leave in the terminal to what is varied.
_WIDTH: Final = 80
_VARIED_WIDTH: Final = 26
# Columns that give way there, in turn, where they leave less than this to what is varied, if it is longer;
# None: than its longest words.
_GIVE_WAY: Final = {
    "network": _VARIED_WIDTH,
    "memory": _VARIED_WIDTH,
    "imbalance": None,
    "tokens/s": None,
    "balance": None,
}
_MOST_REFUSED: Final = 20
_Told = tuple[Column, Sequence[str]]  # with the cells below it

_NOTHING: Final = {format_share(0.0), UNKNOWN, ""}


@dataclass(frozen=True)
class Metric:
    """A column of a comparison.

    Attributes:
        cell: what it shows of a point, or of the scenario itself.
        short: its head in the terminal.
        told: always; where runs differ; or, a cost, on a page wherever a run has it.
    """

    head: str
    cell: Callable[[Compared], str]
    short: str = ""
    told: Literal["always", "differs", "cost"] = "cost"
    only: Literal["", "terminal", "page"] = ""

    def column(self, runs: Sequence[Compared]) -> Column | None:
        """Its column in a table of these runs; None where it says nothing."""
        found = {self.cell(run) for run in runs}
        column = Column(self.head, number=True, whole=True, short=self.short, only=self.only)
        if self.told == "always" or len(found) > 1:
            return column
        if self.told == "cost" and self.only != "terminal" and found - _NOTHING:
            return replace(column, only="page")
        return None


def _slow_hardware(run: Compared) -> str:
    """What of a step it costs, and which GPU's it is."""
    share = shares(run)["hardware"]
    return UNKNOWN if share < SMALL else ", ".join(filter(None, (format_share(share), slow_gpu(run))))


def _moving(run: Compared) -> str:
    """By how much the mean step is longer because experts move."""
    return format_seconds(run.metrics.rebalancing.migration_s if rebalances(run) else None)


def _pays_after(run: Compared) -> str:
    """When a rebalance is won back, if it is known to be."""
    payback = run.payback_steps if isinstance(run, Outcome) else None
    return UNKNOWN if payback is None else steps(payback)


METRICS: Final = (
    Metric("step", lambda run: format_seconds(run.metrics.step_time_s.mean), told="always"),
    Metric("tokens/s", lambda run: format_count(run.metrics.tokens_per_s), told="always"),
    Metric("balance", lambda run: format_number(run.metrics.balancedness), told="always"),
    Metric("imbalance", lambda run: format_share(shares(run)["imbalance"]), "imbal.", "always"),
    Metric("network", lambda run: format_share(shares(run)["network"])),
    Metric("GPUs", lambda run: format_count(run.gpus), told="differs"),
    Metric("memory", lambda run: format_bytes(run.metrics.gpu_memory_bytes.max), told="differs"),
    Metric("dropped", lambda run: format_share(run.metrics.dropped), "drops"),
    Metric("rerouted", lambda run: format_share(run.metrics.rerouted), "reroutes"),
    Metric("added", lambda run: format_share(run.metrics.added), "adds"),
    Metric("gate mass lost", lambda run: format_share(run.metrics.gate_mass_lost), "lost"),
    Metric("slow", slow_gpu, told="differs", only="terminal"),
    Metric("slow hardware", _slow_hardware, only="page"),
    Metric("moving experts", _moving, "moving"),
    Metric("pays after", _pays_after),
)
"""What a comparison shows of each run beside its speedup."""


def comparison_table(comparison: Comparison) -> Table:
    """The scenario itself and every point, fastest first, the best marked."""
    order, best = by_speedup(comparison), best_point(comparison)
    runs: list[Compared] = [comparison.baseline, *(point for _, point in order)]
    columns = ((metric.column([*runs, *comparison.outcomes]), metric) for metric in METRICS)
    shown = [(column, [metric.cell(run) for run in runs]) for column, metric in columns if column is not None]
    varied, (factor,) = _varied(comparison), numbers("speedup")
    factors = ["1.00×", *(speedup(point) for _, point in order)]
    told = [*varied, (factor, factors), *_drawn(comparison, order), *_give_way(varied, shown)]
    marks = {row: "best" for row, (index, _) in enumerate(order, 1) if index == best}
    rows = list(zip(*(cells for _, cells in told), strict=True))
    return Table([column for column, _ in told], rows, marks={0: "base", **marks}, gap=1)


def refused_table(comparison: Comparison) -> Table | None:
    """What cannot be, and why; None where everything can."""
    found = comparison.refused
    if not found:
        return None
    rows = [(named_vary(each.vary) or "as asked", each.infeasible) for each in found[:_MOST_REFUSED]]
    hidden = len(found) - len(rows)
    more = f"{plural(hidden, 'other point')} cannot be; the JSON says why." if hidden else ""
    return Table(words("cannot be", "because"), rows, caption=more)


def _drawn(comparison: Comparison, order: Sequence[tuple[int, Outcome]]) -> list[_Told]:
    """The column of the speedups' intervals, where draws were asked for."""
    if comparison.faster is None:
        return []
    ends = (point.speedup_interval for _, point in order)
    cells = ["", *(UNKNOWN if each is None else f"{each[0]:.2f}–{each[1]:.2f}×" for each in ends)]
    return [(Column("9 of 10 draws", number=True, whole=True, short="9 of 10"), cells)]


def by_speedup(comparison: Comparison) -> list[tuple[int, Outcome]]:
    """The points with their indices, fastest first; equals keep their order. The scenario itself is none."""
    return sorted(tried(comparison), key=lambda item: -item[1].speedup)


def names(comparison: Comparison) -> list[str]:
    """What to call the scenario itself, and each point, fastest first: ``key=value`` after another."""
    keys = varied_keys(comparison)
    return [name for (name,) in _rows(comparison, [[vary(point, keys)] for point in comparison.outcomes])]


def _rows(comparison: Comparison, cells: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Rows for the scenario itself, with its values where a point has them too, and for points by speedup.

    Args:
        cells: what each point varies.
    """
    asked = ["as asked", *[""] * (len(cells[0]) - 1)] if cells else ["as asked"]
    for point, (first, *others) in zip(comparison.outcomes, cells, strict=True):
        if point.as_asked:
            asked = [first if comparison.infeasible else f"as asked: {first}", *others]
            break
    return [asked, *(cells[index] for index, _ in by_speedup(comparison))]


def _varied(comparison: Comparison) -> list[_Told]:
    """The columns that tell points apart: one for each key, in the terminal one for all if that is long."""
    keys = varied_keys(comparison)
    heads = list(keys.values()) or [""]
    cells = [
        [brief(point.vary[key]) if key in point.vary else "" for key in keys] or [""]
        for point in comparison.outcomes
    ]
    wide = sum(max(map(len, column)) + 1 for column in zip(heads, *cells, strict=True))
    together = not keys or wide > _VARIED_WIDTH
    columns = [Column(head, only="page" if together else "") for head in heads]
    told: list[_Told] = list(zip(columns, zip(*_rows(comparison, cells), strict=True), strict=True))
    return [*told, (Column("what if", only="terminal"), names(comparison))] if together else told


def _give_way(varied: Sequence[_Told], shown: Sequence[_Told]) -> list[_Told]:
    """The columns shown, those that are only for the page now marked so.

    A policy's name cut in two can be neither read nor copied.
    """
    kept = [column for column, _ in varied if column.only != "page"]
    texts = [[column.head, *cells] for column, cells in varied if column in kept]
    whole = sum(max(map(len, column)) + 1 for column in texts) - 1
    words = sum(max(len(word) for text in column for word in (*text.split(), "")) + 1 for column in texts) - 1
    wide = {
        column.head: max(len(column.short or column.head), *map(len, cells)) + 1
        for column, cells in shown
        if column.only != "page"
    }
    for head, left in _GIVE_WAY.items():
        needed = words if left is None else min(left, whole)
        if head in wide and needed + len(" speedup") + sum(wide.values()) > _WIDTH:
            del wide[head]
    return [
        (column if column.head in wide else replace(column, only="page"), cells) for column, cells in shown
    ]
