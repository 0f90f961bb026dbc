"""What ``moesim trace info --full`` prints beside the tables of ``info``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table

from moesim.report.trace_table import info_tables, percent
from traces.full_statistics import FullStatistics, LayerDetail, Part

_CATEGORIES = 12  # of more the terminal shows those with the most tokens; --json has all

DISTANCE_HEAD = ("tokens apart, or in a stretch", "experts shared", "experts activated")
PART_HEAD = ("tokens", "max / mean", "differs from the rest", "by chance")
LAYER_HEAD = (
    "layer",
    "evenness",
    "gate entropy",
    "pairs beyond chance",
    "largest cluster",
    "bits on the next layer",
    "most in company",
)


def full_tables(found: FullStatistics) -> list[RenderableType]:
    """The tables of ``info``, then everything else."""
    categories = sorted(found.categories, key=lambda part: (-part.tokens, part.name))[:_CATEGORIES]
    more = len(found.categories) - len(categories)
    tables = [
        _table("Tokens of a request, mean over layers", DISTANCE_HEAD, distance_rows(found)),
        _table("Drift: parts of the trace", ("part", *PART_HEAD), [part_row(part) for part in found.parts]),
    ]
    if found.categories:
        title = "Categories" + (f", the largest {len(categories)}; --json has {more} more" if more else "")
        rows = [part_row(part) for part in categories]
        tables.append(_table(title, ("category", *PART_HEAD), rows))
    tables.append(_table("Layers", LAYER_HEAD, [layer_row(row, 1) for row in found.layers]))
    return [*info_tables(found.base), *(Padding(table, (0, 0, 1, 0)) for table in tables)]


def distance_rows(found: FullStatistics) -> list[list[str]]:
    """A row for each distance that the trace has."""
    return [
        [f"{row.tokens:,}", percent(row.overlap), percent(row.union)]
        for row in found.distances
        if row.overlap is not None or row.union is not None
    ]


def part_row(part: Part) -> list[str]:
    """A part or a category."""
    name = part.name or "unknown"
    numbers = [f"{part.tokens:,}", f"{part.max_over_mean:.2f}"]
    return [name, *numbers, percent(part.distance), percent(part.by_chance)]


def layer_row(row: LayerDetail, pairs: int) -> list[str]:
    """A layer, with so many of its pairs."""
    named = [f"{a}+{b} ({pair.lift:.1f}×)" for pair in row.pairs[:pairs] for a, b in [pair.experts]]
    return [
        str(row.layer),
        f"{row.evenness:.3f}",
        "–" if row.gate_entropy is None else f"{row.gate_entropy:.3f}",
        percent(row.pair_excess),
        str(row.largest_cluster),
        "–" if row.next_layer_bits is None else f"{row.next_layer_bits:.2f}",
        ", ".join(named),
    ]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in head:
        words = name in ("part", "category", "most in company")
        # A long name goes on in the next line: cut, it would be another's.
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
