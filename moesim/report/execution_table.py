"""A real run in the terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moesim.analysis.execution_file import ExecutionResult
from moesim.spec.question import placement, plural, policy
from moesim.units import format_seconds
from traces.timeline import PHASES


def execution_tables(result: ExecutionResult) -> list[RenderableType]:
    """What ``moesim execute`` prints: what ran, its metrics, each rank's seconds."""
    parts: list[RenderableType] = [Text(ran(result)), Text(answer(result), style="bold"), _ranks(result)]
    return [Padding(part, (0, 0, 1, 0)) for part in parts]


def ran(result: ExecutionResult) -> str:
    """What ran, in a sentence."""
    scenario, run = result.scenario, result.run
    turns = ", one after the other" if run["serial"] else ""
    return (
        f"{scenario['model']['name']} on {plural(result.ranks, run['device'] + ' rank')}{turns}, "
        f"{placement(scenario['placement'])}, {policy(scenario['routing'])}, "
        f"{scenario['dispatch']['mode'].replace('_', ' ')} dispatch; experts by {run['backend']}; "
        f"{plural(run['repeats'], 'repeat')} of {plural(scenario['workload']['steps'], 'step')}"
    )


def answer(result: ExecutionResult) -> str:
    """What it took; times only where ranks ran together."""
    metrics = result.metrics
    ratio = metrics.straggler_ratio
    times = ""
    if metrics.layer_time_s is not None and metrics.step_time_s is not None:
        layer, step = metrics.layer_time_s, metrics.step_time_s
        times = (
            f"A layer takes {format_seconds(layer.mean)} (p95 {format_seconds(layer.p95)}), "
            f"a step {format_seconds(step.mean)}. "
        )
    return (
        f"{times}The straggler ratio of expert time is {ratio.experts_time:.3f}, that of assignments "
        f"{ratio.assignments:.3f}; balancedness {metrics.balancedness:.3f}."
    )


def _ranks(result: ExecutionResult) -> Table:
    """The time of a step by phase."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", caption_justify="left")
    table.caption = "time in a step; medians over the repeats"
    table.add_column("rank")
    for phase in shown_phases(result):
        table.add_column(phase.replace("_", " "), justify="right", no_wrap=True)
    for row in rank_rows(result):
        table.add_row(*row)
    return table


def shown_phases(result: ExecutionResult) -> list[str]:
    """Those that were measured, in the order of a step."""
    return [phase for phase in PHASES if all(phase in row.seconds for row in result.per_rank)]


def rank_rows(result: ExecutionResult) -> list[list[str]]:
    """Rank, and seconds of a step in each of the phases."""
    shown = shown_phases(result)
    return [
        [str(row.rank), *(format_seconds(row.seconds[phase]) for phase in shown)] for row in result.per_rank
    ]
