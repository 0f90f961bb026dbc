"""A real run in the terminal."""

from __future__ import annotations

from rich.console import RenderableType

from moesim.analysis.execution_file import ExecutionResult
from moesim.report.table import Table, numbers, words
from moesim.report.terminal import bold, spaced
from moesim.spec.question import placement, plural, policy
from moesim.units import format_seconds
from traces.timeline import PHASES


def execution_tables(result: ExecutionResult) -> list[RenderableType]:
    """What ``moesim execute`` prints: what ran, its metrics, each rank's seconds."""
    return spaced([ran(result), bold(answer(result)), rank_table(result)])


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


def rank_table(result: ExecutionResult) -> Table:
    """Each rank's seconds of a step, in the phases that were measured."""
    shown = [phase for phase in PHASES if all(phase in row.seconds for row in result.per_rank)]
    return Table(
        [*words("rank"), *numbers(*(phase.replace("_", " ") for phase in shown))],
        [
            [str(row.rank), *(format_seconds(row.seconds[phase]) for phase in shown)]
            for row in result.per_rank
        ],
        caption="time in a step; medians over the repeats",
    )
