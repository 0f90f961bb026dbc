"""A validation in words and tables, for the terminal and as the opening of its page."""

from __future__ import annotations

from typing import Final

from rich.console import RenderableType

from moesim.analysis.validation_file import Pair, Spread, ValidationResult
from moesim.report.table import Table, numbers, words
from moesim.report.terminal import bold, bullets, spaced
from moesim.spec.question import placement, plural, policy
from moesim.units import format_seconds, format_share


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
        f"{quantity} ({format_share(error)} against {format_share(noise)})"
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
    return spaced(
        [
            asked(result),
            bold(answer(result)),
            quantity_table(result),
            rank_table(result),
            bullets("Mind", remarks(result)),
        ]
    )


def quantity_table(result: ValidationResult) -> Table:
    """Measured and simulated seconds of each quantity, how far off they are, and the noise."""
    rows = [
        [
            quantity.replace("_", " "),
            *_both(seconds),
            *cells(result.error.get(quantity), ("median", "p95", "bias")),
            *cells(result.noise.get(quantity), ("median",)),
        ]
        for quantity, seconds in result.seconds.items()
    ]
    caption = (
        f"means over cells of the median of {plural(result.repeats, 'repeat')}; error: median of "
        "|simulated - measured| / measured over steps, layers and ranks; noise: how uncertain the measured "
        "median is, by the halves of the repeats"
    )
    return Table([*words(""), *numbers(*_HEADS, "noise")], rows, caption=caption)


def rank_table(result: ValidationResult) -> Table:
    """Measured and simulated expert time of each rank, and how far off it is."""
    rows = [
        [
            str(row.rank),
            *_both(row.seconds["experts"]),
            *cells(row.error["experts"], ("median", "p95", "bias")),
        ]
        for row in result.per_rank
    ]
    return Table([*words("rank"), *numbers(*_HEADS)], rows, caption="expert time of a layer")


def layer_table(result: ValidationResult) -> Table:
    """Measured and simulated seconds of each layer, and the errors of its phases."""
    named = ("layer", "experts", "dispatch", "combine")
    rows = [
        [
            str(row.layer),
            *_both(row.seconds),
            *(cell for name in named for cell in cells(row.error[name], ("median",))),
        ]
        for row in result.per_layer
    ]
    errors = ("error", "of experts", "of dispatch", "of combine")
    return Table([*words("layer"), *numbers("measured", "simulated", *errors)], rows)


_HEADS: Final = ("measured", "simulated", "error", "p95", "bias")


def _both(seconds: Pair) -> list[str]:
    return [format_seconds(seconds.measured), format_seconds(seconds.simulated)]


def cells(spread: Spread | None, names: tuple[str, ...]) -> list[str]:
    """Fields of a spread, as per cent."""
    return [format_share(None if spread is None else getattr(spread, name)) for name in names]
