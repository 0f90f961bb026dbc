"""What ``moesim trace info`` prints of a trace or a load table."""

from __future__ import annotations

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moesim.spec.question import plural
from traces.statistics import TableStatistics, TraceStatistics

# Of more categories than this the terminal shows the largest; --json has all.
_CATEGORIES = 8


def info_tables(facts: TraceStatistics | TableStatistics) -> list[RenderableType]:
    """What is known of a trace or of a load table."""
    parts = _trace(facts) if isinstance(facts, TraceStatistics) else _table(facts)
    return [Padding(part, (0, 0, 1, 0)) for part in parts]


def percent(share: float | None) -> str:
    """A share as all tables of a trace have it.

    >>> percent(0.125), percent(None)
    ('12.5%', '–')
    """
    return "–" if share is None else f"{share:.1%}"


def _table(facts: TableStatistics) -> list[RenderableType]:
    """A head with the shape, the balance of GPUs where it was asked for, and skew by layer."""
    head = (
        f"{facts.model or 'load table'}: {plural(facts.windows, 'window')}, "
        f"{plural(len(facts.layers), 'MoE layer')} × {plural(facts.experts, 'expert')}, "
        f"{plural(facts.assignments, 'assignment')}; no tokens, so nothing that a run could replay"
    )
    parts: list[RenderableType] = [Text(head, style="bold")]
    if facts.gpus is not None:
        parts.append(
            Text(
                f"{plural(facts.gpus.gpus, 'GPU')}, linear placement: "
                f"balancedness {facts.gpus.balancedness:.3f}, "
                f"straggler ratio {facts.gpus.straggler_ratio:.2f}"
            )
        )
    return [*parts, _layers(facts)]


def _trace(facts: TraceStatistics) -> list[RenderableType]:
    """A head with the shape and origin, then skew by batch size and by layer."""
    meta = facts.meta
    head = (
        f"{meta.model}: {plural(facts.tokens, 'token')} of {plural(facts.requests, 'request')}, "
        f"{plural(len(meta.layers), 'MoE layer')} × {plural(meta.experts, 'expert')}, top-{meta.top_k}, "
        f"{plural(facts.assignments, 'assignment')}, "
        f"{'with' if facts.weights else 'without'} gate weights"
    )
    origin = f"origin: {meta.origin or 'not stated'}; licence: {meta.licence or 'not stated'}"
    parts: list[RenderableType] = [Text(head, style="bold"), Text(origin)]
    if facts.overlap is not None:
        parts.append(
            Text(
                f"consecutive tokens of a request share {percent(facts.overlap)} of their experts "
                f"(by chance {percent(facts.overlap_by_chance)})"
            )
        )
    if facts.categories:
        parts.append(Text(_categories(facts.categories)))
    return [*parts, _batches(facts), _layers(facts)]


def _categories(categories: dict[str, int]) -> str:
    largest = sorted(categories.items(), key=lambda item: (-item[1], item[0]))[:_CATEGORIES]
    named = ", ".join(f"{name or 'unknown'} {tokens:,}" for name, tokens in largest)
    more = len(categories) - len(largest)
    return f"tokens by category: {named}" + (f", and {more} more" if more else "")


def _batches(facts: TraceStatistics) -> Table:
    """Skew of batches of random tokens, and of the whole trace."""
    table = Table(title="Expert load, mean over layers", title_justify="left")
    columns = ["tokens", "max / mean", "activated"]
    if facts.gpus is not None:
        columns += [f"balancedness, {plural(facts.gpus.gpus, 'GPU')}", "straggler ratio"]
    for name in columns:
        table.add_column(name, justify="right")
    for batch in facts.batches:
        row = [f"{batch.tokens:,}", f"{batch.max_over_mean:.2f}", percent(batch.activated)]
        if batch.gpus is not None:
            row += [f"{batch.gpus.balancedness:.3f}", f"{batch.gpus.straggler_ratio:.2f}"]
        table.add_row(*row)
    ratios = [layer.max_over_mean for layer in facts.layers]
    never = [layer.never_activated for layer in facts.layers]
    whole = ["all", f"{sum(ratios) / len(ratios):.2f}", percent(1 - sum(never) / len(never))]
    if facts.gpus is not None:
        whole += [f"{facts.gpus.balancedness:.3f}", f"{facts.gpus.straggler_ratio:.2f}"]
    table.add_row(*whole)
    return table


def _layers(facts: TraceStatistics | TableStatistics) -> Table:
    title = (
        f"Whole trace by layer: max / mean has median {facts.max_over_mean_median:.2f}, "
        f"worst {facts.max_over_mean_worst:.2f}"
    )
    table = Table(title=title, title_justify="left")
    for name in ("layer", "max / mean", "Gini", "never activated", "shared with next token"):
        table.add_column(name, justify="right")
    for layer in facts.layers:
        table.add_row(
            str(layer.layer),
            f"{layer.max_over_mean:.2f}",
            f"{layer.gini:.3f}",
            percent(layer.never_activated),
            percent(layer.overlap),
        )
    return table
