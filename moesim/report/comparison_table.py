"""The table of a comparison: the scenario itself and every point, and what tells them apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

from moesim.analysis.ranking import BASE, Ranking, decodes, latency_s, per_gpu, rank, targets_of
from moesim.analysis.result_file import Compared, Comparison, Outcome
from moesim.analysis.target import Target
from moesim.report.comparison_answer import rebalances, slow_gpu
from moesim.report.findings import SMALL, shares
from moesim.report.point_names import Varied, named_vary, speedup, steps
from moesim.report.ranked_answer import LATENCY
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
"""What a comparison shows of each run beside what ranks it."""


def _ranking_metrics(comparison: Comparison) -> list[Metric]:
    """Latency, throughput, and whether targets are met: what ranks runs."""
    targets = targets_of(comparison)
    latency = LATENCY[True] if decodes(comparison) else "step"
    return [
        Metric(
            latency,
            lambda run: format_seconds(latency_s(run)),
            "\n".join(re.findall(r"\w+-?", latency)),
            "always",
        ),
        Metric(
            "tokens/s/GPU",
            lambda run: format_count(per_gpu(comparison, run)),
            "tokens/s\n/GPU",
            "always",
        ),
        Metric("tokens/s", lambda run: format_count(run.metrics.tokens_per_s), told="always", only="page"),
        *([Metric("meets", lambda run: _meets(targets, run), told="always")] if targets else []),
        *(Metric(each.text, partial(_shown, each), told="always", only="page") for each in targets),
    ]


def _meets(targets: Sequence[Target], run: Compared) -> str:
    return "yes" if all(target.met(run.metrics) for target in targets) else "no"


def _shown(target: Target, run: Compared) -> str:
    return target.show(run.metrics)


def comparison_table(comparison: Comparison) -> Table:
    """The scenario itself and every point, best first, what answers the question marked."""
    ranking = rank(comparison)
    runs: list[Compared] = [comparison.baseline, *(comparison.outcomes[number] for number in ranking.order)]
    metrics = (*_ranking_metrics(comparison), *METRICS)
    columns = ((metric.column([*runs, *comparison.outcomes]), metric) for metric in metrics)
    shown = [(column, [metric.cell(run) for run in runs]) for column, metric in columns if column is not None]
    varied, factors = _varied(comparison), _factors(comparison, ranking)
    told = [*varied, *factors, *_give_way(varied, factors, shown)]
    rows_of = {number: row for row, number in enumerate((BASE, *ranking.order))}
    marks = {0: "base"} | {rows_of[number]: "front" for number in ranking.front}
    if ranking.best is not None:
        marks[rows_of[ranking.best]] = "best"
    rows = list(zip(*(cells for _, cells in told), strict=True))
    shared = Varied.of(comparison).shared()
    return Table([column for column, _ in told], rows, caption=shared, marks=marks, gap=1)


def _factors(comparison: Comparison, ranking: Ranking) -> list[_Told]:
    """Speedups, where they compare like with like, and their intervals, where draws were asked for."""
    points = [comparison.outcomes[number] for number in ranking.order]
    (column,) = numbers("speedup")
    only = replace(column, only="" if ranking.kind in ("speed", "modelling") else "page")
    found: list[_Told] = [(only, ["1.00×", *map(speedup, points)])]
    if comparison.faster is not None:
        ends = (point.speedup_interval for point in points)
        cells = ["", *(UNKNOWN if each is None else f"{each[0]:.2f}–{each[1]:.2f}×" for each in ends)]
        found.append((Column("9 of 10 draws", number=True, whole=True, short="9 of 10"), cells))
    return found


def refused_table(comparison: Comparison) -> Table | None:
    """What cannot be, and why; None where everything can."""
    found = comparison.refused
    if not found:
        return None
    rows = [(named_vary(each.vary) or "as asked", each.infeasible) for each in found[:_MOST_REFUSED]]
    hidden = len(found) - len(rows)
    more = f"{plural(hidden, 'other point')} cannot be; the JSON says why." if hidden else ""
    return Table(words("cannot be", "because"), rows, caption=more)


def ranked(comparison: Comparison) -> list[Outcome]:
    """The tried points, best first."""
    return [comparison.outcomes[number] for number in rank(comparison).order]


def names(comparison: Comparison) -> list[str]:
    """What to call the scenario itself, and each point, best first: ``key=value`` after another."""
    return [name for (name,) in _rows(comparison, [[name] for name in Varied.of(comparison).names()])]


def _rows(comparison: Comparison, cells: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Rows for the scenario itself, with its values where a point has them too, and for points, best first.

    Args:
        cells: what each point varies.
    """
    asked = ["as asked", *[""] * (len(cells[0]) - 1)] if cells else ["as asked"]
    for point, (first, *others) in zip(comparison.outcomes, cells, strict=True):
        if point.as_asked:
            asked = [first if comparison.infeasible else f"as asked: {first}", *others]
            break
    return [asked, *(cells[number] for number in rank(comparison).order)]


def _varied(comparison: Comparison) -> list[_Told]:
    """The columns that tell points apart: one for each key, in the terminal one for all if that is long."""
    varied = Varied.of(comparison)
    keys, heads = list(varied.heads), list(varied.heads.values()) or [""]
    cells = [
        [brief(values[key]) if key in values else "" for key in keys] or [""] for values in varied.points
    ]
    wide = sum(max(map(len, column)) + 1 for column in zip(heads, *cells, strict=True))
    together = not keys or wide > _VARIED_WIDTH
    columns = [Column(head, only="page" if together else "") for head in heads]
    told: list[_Told] = list(zip(columns, zip(*_rows(comparison, cells), strict=True), strict=True))
    return [*told, (Column("what if", only="terminal"), names(comparison))] if together else told


def _give_way(varied: Sequence[_Told], factors: Sequence[_Told], shown: Sequence[_Told]) -> list[_Told]:
    """The columns shown, those that are only for the page now marked so.

    A policy's name cut in two can be neither read nor copied.
    """
    kept = [column for column, _ in varied if column.only != "page"]
    texts = [[column.head, *cells] for column, cells in varied if column in kept]
    whole = sum(max(map(len, column)) + 1 for column in texts) - 1
    words = sum(max(len(word) for text in column for word in (*text.split(), "")) + 1 for column in texts) - 1
    wide = {
        column.head: max(map(len, [*(column.short or column.head).split("\n"), *cells])) + 1
        for column, cells in shown
        if column.only != "page"
    }
    others = sum(len(column.head) + 1 for column, _ in factors if column.only != "page")
    for head, left in _GIVE_WAY.items():
        needed = words if left is None else min(left, whole)
        if head in wide and needed + others + sum(wide.values()) > _WIDTH:
            del wide[head]
    return [
        (column if column.head in wide else replace(column, only="page"), cells) for column, cells in shown
    ]
