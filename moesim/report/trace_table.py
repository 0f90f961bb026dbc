"""The tables of a trace or a load table, and what ``moesim trace info`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import RenderableType

from moesim.report.table import Table, numbers, words
from moesim.report.terminal import bold, spaced
from moesim.spec.question import plural
from moesim.units import format_count, format_number, format_share
from traces import full_statistics
from traces.full_statistics import FullStatistics
from traces.statistics import GpuStatistics, TableStatistics, TraceStatistics

# Of more categories than so many the terminal shows those with the most tokens; --json has all.
_CATEGORIES, _CATEGORY_ROWS = 8, 12


def info_tables(facts: TraceStatistics | TableStatistics) -> list[RenderableType]:
    """What is known of a trace or of a load table."""
    return spaced(_of_trace(facts) if isinstance(facts, TraceStatistics) else _of_load_table(facts))


def full_tables(found: FullStatistics) -> list[RenderableType]:
    """The tables of ``info``, then everything else."""
    categories = sorted(found.categories, key=lambda part: (-part.tokens, part.name))[:_CATEGORY_ROWS]
    more = len(found.categories) - len(categories)
    named = f", the largest {len(categories)}; --json has {more} more" if more else ""
    return [
        *info_tables(found.base),
        *spaced(
            [
                distance_table(found),
                part_table("part", found.parts, "Drift: parts of the trace"),
                part_table("category", categories, f"Categories{named}") if categories else None,
                detail_table(found, 1),
            ]
        ),
    ]


def _of_load_table(facts: TableStatistics) -> list[RenderableType]:
    """A head with the shape, the balance of GPUs where it was asked for, and skew by layer."""
    head = (
        f"{facts.model or 'load table'}: {plural(facts.windows, 'window')}, "
        f"{plural(len(facts.layers), 'MoE layer')} × {plural(facts.experts, 'expert')}, "
        f"{_assignments(facts)}; no tokens, so nothing that a run could replay"
    )
    balance = ""
    if facts.gpus is not None:
        balanced, straggler = _balance(facts.gpus)
        balance = (
            f"{plural(facts.gpus.gpus, 'GPU')}, linear placement: balancedness {balanced}, "
            f"straggler ratio {straggler}"
        )
    return [bold(head), balance, _layer_table(facts)]


def _assignments(facts: TableStatistics) -> str:
    if isinstance(facts.assignments, int):
        return plural(facts.assignments, "assignment")
    return f"{facts.assignments:,.4g} assignments, averages among them"


def _of_trace(facts: TraceStatistics) -> list[RenderableType]:
    """A head with the shape and origin, then skew by batch size and by layer."""
    meta = facts.meta
    head = (
        f"{meta.model or 'trace'}: {plural(facts.tokens, 'token')} of {plural(facts.requests, 'request')}, "
        f"{plural(len(meta.layers), 'MoE layer')} × {plural(meta.experts, 'expert')}, top-{meta.top_k}, "
        f"{plural(facts.assignments, 'assignment')}, "
        f"{'with' if facts.weights else 'without'} gate weights"
    )
    origin = f"origin: {meta.origin or 'not stated'}; licence: {meta.licence or 'not stated'}"
    overlap = ""
    if facts.overlap is not None:
        overlap = (
            f"consecutive tokens of a request share {_share(facts.overlap)} of their experts "
            f"(by chance {_share(facts.overlap_by_chance)})"
        )
    named = _categories(facts.categories) if facts.categories else ""
    return [bold(head), origin, overlap, named, batch_table(facts), _layer_table(facts)]


def _categories(categories: dict[str, int]) -> str:
    largest = sorted(categories.items(), key=lambda item: (-item[1], item[0]))[:_CATEGORIES]
    named = ", ".join(f"{name or 'unknown'} {format_count(tokens)}" for name, tokens in largest)
    more = len(categories) - len(largest)
    return f"tokens by category: {named}" + (f", and {more} more" if more else "")


def batch_table(facts: TraceStatistics) -> Table:
    """Skew of batches of random tokens, and of the whole trace."""
    heads = ["tokens", "max / mean", "activated"]
    if facts.gpus is not None:
        heads += [f"balancedness, {plural(facts.gpus.gpus, 'GPU')}", "straggler ratio"]
    ratios = [layer.max_over_mean for layer in facts.layers]
    never = [layer.never_activated for layer in facts.layers]
    entries = [
        (format_count(each.tokens), each.max_over_mean, each.activated, each.gpus) for each in facts.batches
    ]
    entries.append(("all", sum(ratios) / len(ratios), 1 - sum(never) / len(never), facts.gpus))
    rows = [
        [name, format_number(ratio), _share(activated), *(() if gpus is None else _balance(gpus))]
        for name, ratio, activated, gpus in entries
    ]
    return Table(numbers(*heads, whole=False), rows, title="Expert load, mean over layers")


def _layer_table(facts: TraceStatistics | TableStatistics) -> Table:
    title = (
        f"Whole trace by layer: max / mean has median {facts.max_over_mean_median:.2f}, "
        f"worst {facts.max_over_mean_worst:.2f}"
    )
    heads = ("layer", "max / mean", "Gini", "never activated", "shared with next token")
    rows = [
        [
            str(layer.layer),
            format_number(layer.max_over_mean),
            format_number(layer.gini, 3),
            _share(layer.never_activated),
            _share(layer.overlap),
        ]
        for layer in facts.layers
    ]
    return Table(numbers(*heads, whole=False), rows, title=title)


def distance_table(found: FullStatistics) -> Table:
    """A row for each distance that the trace has."""
    rows = [
        [format_count(row.tokens), _share(row.overlap), _share(row.union)]
        for row in found.distances
        if row.overlap is not None or row.union is not None
    ]
    heads = ("tokens apart, or in a stretch", "experts shared", "experts activated")
    return Table(numbers(*heads, whole=False), rows, title="Tokens of a request, mean over layers")


def part_table(what: str, parts: Iterable[full_statistics.Part], title: str = "") -> Table:
    """Parts or categories of the trace, and how they differ."""
    heads = ("tokens", "max / mean", "differs from the rest", "by chance")
    rows = [
        [
            part.name or "unknown",
            format_count(part.tokens),
            format_number(part.max_over_mean),
            _share(part.distance),
            _share(part.by_chance),
        ]
        for part in parts
    ]
    return Table([*words(what), *numbers(*heads, whole=False)], rows, title=title)


def detail_table(found: FullStatistics, pairs: int) -> Table:
    """Layers, each with so many of its pairs."""
    heads = (
        *("layer", "evenness", "gate entropy", "pairs beyond chance", "largest cluster"),
        "bits on the next layer",
    )
    rows = [
        [
            str(row.layer),
            format_number(row.evenness, 3),
            format_number(row.gate_entropy, 3),
            _share(row.pair_excess),
            str(row.largest_cluster),
            format_number(row.next_layer_bits),
            ", ".join(f"{a}+{b} ({pair.lift:.1f}×)" for pair in row.pairs[:pairs] for a, b in [pair.experts]),
        ]
        for row in found.layers
    ]
    return Table([*numbers(*heads, whole=False), *words("most in company")], rows, title="Layers")


def _balance(gpus: GpuStatistics) -> Sequence[str]:
    return format_number(gpus.balancedness, 3), format_number(gpus.straggler_ratio)


def _share(share: float | None) -> str:
    return format_share(share, 1, gap="")
