"""What ``moesim trace info`` prints of a trace or a load table."""

from __future__ import annotations

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from traces.statistics import TableStatistics, TraceStatistics

# Of more categories than this the terminal shows the largest; --json has all.
_CATEGORIES = 8


def info_tables(facts: TraceStatistics | TableStatistics) -> list[RenderableType]:
    """What is known of a trace or of a load table."""
    parts = _trace(facts) if isinstance(facts, TraceStatistics) else _table(facts)
    return [Padding(part, (0, 0, 1, 0)) for part in parts]


def _table(facts: TableStatistics) -> list[RenderableType]:
    """A head with the shape, the balance of GPUs where it was asked for, and skew by layer."""
    head = (
        f"{facts.model or 'load table'}: {facts.windows:,} windows, {len(facts.layers)} MoE layers × "
        f"{facts.experts} experts, {facts.assignments:,} assignments; no tokens, so nothing that a run could "
        "replay"
    )
    parts: list[RenderableType] = [Text(head, style="bold")]
    if facts.gpus is not None:
        parts.append(
            Text(
                f"{facts.gpus.gpus} GPUs, linear placement: balancedness {facts.gpus.balancedness:.3f}, "
                f"straggler ratio {facts.gpus.straggler_ratio:.2f}"
            )
        )
    return [*parts, _layers(facts)]


def _trace(facts: TraceStatistics) -> list[RenderableType]:
    """A head with the shape and origin, then skew by batch size and by layer."""
    meta = facts.meta
    head = (
        f"{meta.model}: {facts.tokens:,} tokens of {facts.requests:,} requests, "
        f"{len(meta.layers)} MoE layers × {meta.experts} experts, top-{meta.top_k}, "
        f"{facts.assignments:,} assignments, "
        f"{'with' if facts.weights else 'without'} gate weights"
    )
    origin = f"origin: {meta.origin or 'not stated'}; licence: {meta.licence or 'not stated'}"
    parts: list[RenderableType] = [Text(head, style="bold"), Text(origin)]
    if facts.overlap is not None:
        parts.append(
            Text(
                f"consecutive tokens of a request share {facts.overlap:.0%} of their experts "
                f"(by chance {facts.overlap_by_chance:.1%})"
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
        columns += [f"balancedness, {facts.gpus.gpus} GPUs", "straggler ratio"]
    for name in columns:
        table.add_column(name, justify="right")
    for batch in facts.batches:
        row = [f"{batch.tokens}", f"{batch.max_over_mean:.2f}", f"{batch.activated:.0%}"]
        if batch.gpus is not None:
            row += [f"{batch.gpus.balancedness:.3f}", f"{batch.gpus.straggler_ratio:.2f}"]
        table.add_row(*row)
    ratios = [layer.max_over_mean for layer in facts.layers]
    never = [layer.never_activated for layer in facts.layers]
    whole = ["all", f"{sum(ratios) / len(ratios):.2f}", f"{1 - sum(never) / len(never):.0%}"]
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
            f"{layer.never_activated:.0%}",
            "–" if layer.overlap is None else f"{layer.overlap:.0%}",
        )
    return table
