"""Tables for the terminal, readable at 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moesim.analysis.result_file import Compared, Comparison, Result, Stage
from moesim.report.breakdown import asked_cells, by_speedup, group, mass_lost, memory, moving, pays_after
from moesim.report.figures import key_figures
from moesim.report.findings import (
    DATA_PARALLEL,
    TERMS,
    advice,
    answer,
    best_point,
    percent,
    shares,
    slow_gpu,
    speedup,
    varied_keys,
    whatif_answer,
)
from moesim.report.notes import comparison_notes
from moesim.report.stages import SHARES, stage_shares
from moesim.spec.question import brief, question
from moesim.units import format_seconds
from traces.timeline import PHASES

# The layers that lose most; the report lists all.
_STRAGGLERS: Final = 5
# What a comparison shows of a point (or of the scenario itself), by column.
_COLUMNS: Final[Mapping[str, Callable[[Compared], str]]] = {
    "step": lambda point: format_seconds(point.metrics.step_time_s.mean),
    "tokens/s": lambda point: f"{point.metrics.tokens_per_s:,.0f}",
    "balance": lambda point: f"{point.metrics.balancedness:.2f}",
    "imbal.": lambda point: percent(shares(point)["imbalance"]),
    "network": lambda point: percent(shares(point)["network"]),
    "GPUs": group,
    "memory": memory,
    "drops": lambda point: percent(point.metrics.dropped),
    "reroutes": lambda point: percent(point.metrics.rerouted),
    "adds": lambda point: percent(point.metrics.added),
    "lost": mass_lost,
    "slow": slow_gpu,
    "moving": moving,
    "pays after": pays_after,
}
# What is told of each of several policies.
_ALWAYS: Final = ("step", "tokens/s", "balance", "imbal.")
# What the other columns leave at 80 characters.
_WIDTH: Final = 80
_VARIED_WIDTH: Final = 26
# Columns that give way where they leave less than this to what is varied, if it is longer; None: than its
# longest words.
_GIVE_WAY: Final = {
    "network": _VARIED_WIDTH,
    "memory": _VARIED_WIDTH,
    "imbal.": None,
    "tokens/s": None,
    "balance": None,
}


def run_tables(result: Result) -> list[RenderableType]:
    """What ``moesim run`` prints: question and answer, figures, where the time goes, stragglers, advice."""
    parts: list[RenderableType] = [
        Text(question(result.scenario)),
        Text(answer(result), style="bold"),
        _figures(result),
        *([_stages(result.metrics.stages)] if result.metrics.stages else []),
        _phases(result),
        _attribution(result),
    ]
    if result.stragglers:
        parts.append(_stragglers(result))
    parts += _bullets("What would help", advice(result))
    parts += _bullets("Mind", result.notes)
    return [Padding(part, (0, 0, 1, 0)) for part in parts]


def whatif_tables(comparison: Comparison) -> list[RenderableType]:
    """What ``moesim whatif`` prints: all points, the answer, and what to mind of it."""
    mind = _bullets("Mind", comparison_notes(comparison))
    return [whatif_table(comparison), *(Padding(part, (1, 0, 0, 0)) for part in mind)]


def _bullets(head: str, lines: Sequence[str]) -> list[RenderableType]:
    bullets = (Padding(Text(f"- {line.replace('`', '')}"), (0, 1)) for line in lines)
    return [Group(Text(head, style="bold"), *bullets)] if lines else []


def whatif_table(comparison: Comparison) -> Table:
    """The scenario itself and every point, fastest first, the best in bold; the caption is the answer.

    Each varied key has its own column where their values are short, else they share one. Of what a
    policy costs only those columns stand in the table in which points differ.
    """
    base = comparison.baseline
    runs: list[Compared] = [base, *comparison.points]
    shown = {
        name: cell
        for name, cell in _COLUMNS.items()
        if name in _ALWAYS or len({cell(point) for point in runs}) > 1
    }
    heads, varied = _varied(comparison)
    wide = {name: max(len(name), *(len(cell(point)) for point in runs)) + 1 for name, cell in shown.items()}
    # The report has what gives way. A policy's name cut in two can be neither read nor copied.
    asked = asked_cells(comparison, varied, len(heads))
    words = _width([[cell.split() for cell in row] for row in (heads, asked, *varied)])
    whole = _width([[[cell] for cell in row] for row in (heads, asked, *varied)])
    for name, left in _GIVE_WAY.items():
        needed = words if left is None else min(left, whole)
        if name in shown and needed + len(" speedup") + sum(wide[name] for name in shown) > _WIDTH:
            del shown[name]
    table = _table(1, caption=whatif_answer(comparison), caption_style="bold", caption_justify="left")
    for name in heads:
        table.add_column(name, overflow="fold")
    for name in ("speedup", *shown):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*map(Text, asked), "1.00×", *(cell(base) for cell in shown.values()))
    best = best_point(comparison)
    for index, point in by_speedup(comparison):
        values = [cell(point) for cell in shown.values()]
        cells = map(Text, varied[index])
        table.add_row(*cells, speedup(point), *values, style="bold" if index == best else None)
    return table


def _varied(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns that tell points apart, and each point's cells."""
    keys, points = varied_keys(comparison), comparison.points
    cells = [[brief(point.vary[key]) if key in point.vary else "" for key in keys] for point in points]
    columns = zip(keys.values(), *cells, strict=True)
    if keys and sum(max(map(len, column)) + 1 for column in columns) <= _VARIED_WIDTH:
        return list(keys.values()), cells
    return ["what if"], [
        [", ".join(f"{keys[key]}={brief(value)}" for key, value in point.vary.items())] for point in points
    ]


def _width(rows: Sequence[Sequence[Sequence[str]]]) -> int:
    """Of columns side by side that are as wide as the longest part of their cells."""
    columns = zip(*rows, strict=True)
    return sum(max((len(part) for cell in column for part in cell), default=0) + 1 for column in columns) - 1


def _table(gap: int = 2, **options: Any) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim", **options)


def _figures(result: Result) -> Table:
    table = _table(show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for name, value, note in key_figures(result.metrics):
        table.add_row(name, value, note)
    trace = result.trace
    kind = "generated" if trace.generated else "recorded"
    skew = f"hottest expert at {trace.skew:.2f} times the mean load"
    table.add_row("routing", kind, Text(f"{trace.name}, {skew}"))
    return table


def _stages(stages: Sequence[Stage]) -> Table:
    """What became of the router's choice after each policy."""
    table = _table(caption="after each policy, of the assignments that the router chose")
    table.add_column("policy")
    for name in SHARES:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for stage in stages:
        shares = ("" if share is None else percent(share) for share in stage_shares(stage))
        table.add_row(Text(stage.policy), *shares)
    return table


def _phases(result: Result) -> Table:
    metrics, bounds = result.metrics, result.bounds
    step_s = metrics.step_time_s.mean
    table = _table()
    table.add_column("phase")
    for name in ("critical path", "of the step", "at peak, evenly"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in PHASES:
        seconds, bound = metrics.phase_time_s.get(name, 0.0), bounds.get(name)
        if seconds or bound:
            shown = "–" if bound is None else format_seconds(bound)
            table.add_row(name.replace("_", " "), format_seconds(seconds), percent(seconds / step_s), shown)
    return table


def _attribution(result: Result) -> Table:
    table = _table()
    table.add_column("cause")
    table.add_column("a step", justify="right", no_wrap=True)
    table.add_column("of the step", justify="right", no_wrap=True)
    table.add_column("", style="dim")
    for term, share in shares(result).items():
        table.add_row(term, format_seconds(result.attribution.seconds(term)), percent(share), TERMS[term])
        data_s, step_s = (
            result.data_parallel_imbalance_s,
            result.metrics.step_time_s.mean,
        )
        if term == "imbalance" and percent(data_s / step_s) != percent(0.0):
            table.add_row(
                DATA_PARALLEL[0], format_seconds(data_s), percent(data_s / step_s), DATA_PARALLEL[1]
            )
    return table


def _stragglers(result: Result) -> Table:
    rows = sorted(result.stragglers, key=lambda row: (-row.lost_s, row.layer))
    table = _table()
    for name in ("layer", "GPU", "lost a step", "tokens/mean", "time/mean"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("cause")
    table.add_column("hottest expert")
    for row in rows[:_STRAGGLERS]:
        table.add_row(
            str(row.layer),
            str(row.rank),
            format_seconds(row.lost_s),
            f"{row.load:.2f}",
            f"{row.time:.2f}",
            row.cause,
            f"{row.expert} ({percent(row.expert_share)})",
        )
    if len(rows) > _STRAGGLERS:
        table.caption = f"the {_STRAGGLERS} layers of {len(rows)} that lose most"
        table.caption_justify = "left"
    return table
