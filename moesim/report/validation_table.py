"""A validation in words and tables, for the terminal and as the opening of its page."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moesim.analysis.validation_file import Spread, ValidationResult
from moesim.report.findings import percent
from moesim.spec.question import placement, plural, policy
from moesim.units import format_seconds


def asked(result: ValidationResult) -> str:
    """What was compared, as a question."""
    scenario = result.scenario
    return (
        f"How close to a real run is the simulation of {scenario['model']['name']} on "
        f"{plural(result.ranks, result.device + ' rank')}, {placement(scenario['placement'])}, "
        f"{policy(scenario['routing'])} and {scenario['dispatch']['mode'].replace('_', ' ')} dispatch?"
    )


def answer(result: ValidationResult) -> str:
    """How far off the simulation is, and whether the measurement can be trusted."""
    ratio, error = result.straggler_ratio, result.error
    experts, layer = (cells(error[quantity], ("median", "p95")) for quantity in ("experts", "layer"))
    sentence = (
        f"A rank's expert time is {experts[0]} off in the median cell and a layer {layer[0]}, at the 95th "
        f"percentile {experts[1]} and {layer[1]}; the straggler ratio is {ratio.measured:.3f} measured "
        f"and {ratio.simulated:.3f} simulated."
    )
    return sentence if result.verdict == "ok" else f"{_told_apart(result)} {sentence}"


def _told_apart(result: ValidationResult) -> str:
    """Of a noisy measurement, which errors are larger than its noise all the same."""
    if not result.noise:
        return "How noisy the measurement is cannot be told from one repeat."
    errors = {
        quantity.replace("_", " "): (error.median, noise.median)
        for quantity, error in result.error.items()
        if error is not None and (noise := result.noise.get(quantity)) is not None
    }
    beyond = [
        f"{quantity} ({percent(error)} against {percent(noise)})"
        for quantity, (error, noise) in errors.items()
        if error > noise
    ]
    if not beyond:
        return "The measurement is noisy, so that errors cannot be told from noise."
    within = [quantity for quantity, (error, noise) in errors.items() if error <= noise]
    rest = f"; of {' and '.join(within)} they cannot be told from it" if within else ""
    return f"The measurement is noisy, yet errors are larger than its noise: {', '.join(beyond)}{rest}."


def remarks(result: ValidationResult) -> list[str]:
    """What the tables do not say: order of ranks, counts, what was simulated, notes."""
    pairs, tau = result.rank_order_pairs, result.rank_order_tau
    within = f"{plural(pairs.left_out, 'pair')} of ranks within the noise"
    if tau is None:
        lines = [f"The order of the ranks by expert time says nothing here: {within}, none beyond it."]
    else:
        lines = [
            f"Order of the ranks by expert time, Kendall's tau-b: {tau:.3f} over "
            f"{plural(pairs.compared, 'pair')}; left out: {within}."
        ]
    counted = result.counts_equal
    if counted is None:
        lines.append("Nothing was sent, so no counts were compared.")
    else:
        said = "are exactly" if counted else "are NOT"
        lines.append(f"Tokens and copies counted on their receivers {said} those of the simulation.")
    if result.simulated_phases:
        named = " and ".join(result.simulated_phases)
        lines.append(
            f"Ranks ran one after another: their kernels are measured, {named} and the waiting are simulated "
            "on both sides."
        )
    return [*lines, *result.notes]


def validation_tables(result: ValidationResult) -> list[RenderableType]:
    """What ``moesim validate`` prints."""
    bullets = (Padding(Text(f"- {line}"), (0, 1)) for line in remarks(result))
    parts: list[RenderableType] = [
        Text(asked(result)),
        Text(answer(result), style="bold"),
        _quantities(result),
        _ranks(result),
        Group(Text("Mind", style="bold"), *bullets),
    ]
    return [Padding(part, (0, 0, 1, 0)) for part in parts]


def quantity_rows(result: ValidationResult) -> list[list[str]]:
    """Name, measured, simulated, median error, 95th percentile, bias and noise of each quantity."""
    return [
        [
            quantity.replace("_", " "),
            format_seconds(seconds.measured),
            format_seconds(seconds.simulated),
            *cells(result.error.get(quantity), ("median", "p95", "bias")),
            *cells(result.noise.get(quantity), ("median",)),
        ]
        for quantity, seconds in result.seconds.items()
    ]


def rank_rows(result: ValidationResult) -> list[list[str]]:
    """Rank, measured and simulated expert time, and its errors."""
    return [
        [
            str(row.rank),
            format_seconds(row.seconds["experts"].measured),
            format_seconds(row.seconds["experts"].simulated),
            *cells(row.error["experts"], ("median", "p95", "bias")),
        ]
        for row in result.per_rank
    ]


QUANTITY_HEAD = ("measured", "simulated", "error", "p95", "bias", "noise")
RANK_HEAD = ("measured", "simulated", "error", "p95", "bias")


def _quantities(result: ValidationResult) -> Table:
    table = _table("", QUANTITY_HEAD)
    table.caption = (
        f"means over cells of the median of {plural(result.repeats, 'repeat')}; error: median of "
        "|simulated - measured| / measured over steps, layers and ranks; noise: how uncertain the measured "
        "median is, by the halves of the repeats"
    )
    for row in quantity_rows(result):
        table.add_row(*row)
    return table


def _ranks(result: ValidationResult) -> Table:
    table = _table("rank", RANK_HEAD)
    table.caption = "expert time of a layer"
    for row in rank_rows(result):
        table.add_row(*row)
    return table


def _table(first: str, numbers: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", caption_justify="left")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def cells(spread: Spread | None, names: tuple[str, ...]) -> list[str]:
    """Fields of a spread, as per cent."""
    return ["–" if spread is None else percent(getattr(spread, name)) for name in names]
