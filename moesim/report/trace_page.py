"""The page of a trace: its loads, what repeats, who meets whom, what changes; in pictures."""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.report import svg
from moesim.report.heatmap import EDGES, load_legend
from moesim.report.markup import Markup
from moesim.report.page import figures_list, opening, page, section
from moesim.report.trace_table import batch_table, detail_table, distance_table, part_table
from moesim.spec.question import plural
from moesim.units import format_count, format_share
from traces.co_activation import clusters, pairs_by_chance
from traces.full_statistics import FullStatistics

Floats = npt.NDArray[np.float64]

# More cells in a row cannot be told apart; neighbours then share one.
MOST_CELLS: Final = 64
_LEFT, _TOP = 62.0, 30.0


def trace_page(found: FullStatistics) -> str:
    """One HTML page that opens offline."""
    meta = found.base.meta
    sections = [
        opening(
            f"What is in the routing of {meta.model or 'this model'}?",
            _answer(found),
            f"{meta.origin or 'Origin not stated'}; licence: {meta.licence or 'not stated'}. "
            f"{plural(found.base.tokens, 'token')} of {plural(found.base.requests, 'request')}, "
            f"{plural(len(meta.layers), 'MoE layer')} × {plural(meta.experts, 'expert')}, top-{meta.top_k}.",
        ),
        _key_figures(found),
        section("Loads", _load_map(found), batch_table(found.base)),
        section("Tokens of a request", _curves(found), distance_table(found)),
        section("Who meets whom", _company_map(found)),
        section("Drift", part_table("part", found.parts)),
    ]
    if found.categories:
        sections.append(section("Categories", part_table("category", found.categories)))
    sections.append(section("Layers", detail_table(found, 3)))
    return page(f"{meta.model or 'trace'}: routing", sections)


def _answer(found: FullStatistics) -> str:
    base = found.base
    ratio = base.max_over_mean_median
    text = f"The most loaded expert of a layer gets {ratio:.1f} times the mean (median layer)"
    if base.overlap is None:
        return text + "."
    return (
        f"{text}, and consecutive tokens share {format_share(base.overlap)} of their experts, "
        f"where chance would give {format_share(base.overlap_by_chance)}."
    )


def _key_figures(found: FullStatistics) -> Markup:
    bits = [row.next_layer_bits for row in found.layers if row.next_layer_bits is not None]
    excess = [row.pair_excess for row in found.layers if row.pair_excess is not None]
    drift = [part.distance for part in found.parts if part.distance is not None]
    figures = [
        ("worst layer", f"{found.base.max_over_mean_worst:.2f}", "max / mean of its expert loads"),
        (
            "evenness",
            f"{np.mean([row.evenness for row in found.layers]):.3f}",
            "entropy of loads; 1 = all equal",
        ),
    ]
    if excess:
        figures.append(
            ("pairs beyond chance", format_share(float(np.mean(excess))), "that loads do not explain")
        )
    if bits:
        figures.append(("next layer", f"{np.mean(bits):.2f} bits", "that an expert tells of one there"))
    if drift:
        figures.append(("drift", format_share(float(np.mean(drift))), "of a part's load, against the rest"))
    return figures_list(figures)


def _load_map(found: FullStatistics) -> Markup:
    """A row for each layer, experts in order of their load: the darker, the more over the mean."""
    relative_LE = np.sort(found.load_LE / found.load_LE.mean(axis=1, keepdims=True), axis=1)[:, ::-1]
    cells_LN = _merged(relative_LE, axis=1)
    high = min(max(620 / len(cells_LN), 5.0), 18.0)
    wide = (svg.WIDTH - _LEFT - 20) / cells_LN.shape[1]
    parts = [
        svg.text(_LEFT, 14, "experts, the most loaded first", "tick"),
        svg.text(_LEFT - 6, 14, "layer", "tick end"),
    ]
    every = max(1, round(12 / high))
    for row, (layer, cells_N) in enumerate(zip(found.base.meta.layers, cells_LN, strict=True)):
        y = _TOP + row * high
        if row % every == 0:
            parts.append(svg.text(_LEFT - 6, y + high / 2 + 3.5, str(layer), "tick small end"))
        for n, value in enumerate(cells_N.tolist()):
            tooltip = f"layer {layer}: {value:.2f} × the mean"
            parts.append(
                svg.rect(_LEFT + n * wide, y, wide - 0.5, high - 0.5, svg.heat(EDGES, value), tooltip)
            )
    bottom = _TOP + high * len(cells_LN)
    parts.append(load_legend(_LEFT, bottom + 22))
    return svg.figure(
        bottom + 34,
        "Heat map of expert loads, layer by rank of the expert",
        *parts,
        caption=f"Assignments over the layer's mean, all tokens together.{_together(relative_LE.shape[1])}",
    )


def _company_map(found: FullStatistics) -> Markup:
    """Experts by experts of one layer, clusters side by side: meetings over those by chance."""
    pairs_EE, layer = found.pairs_EE, found.layers[found.busiest].layer
    order_E = np.lexsort((np.arange(len(pairs_EE)), clusters(pairs_EE)))
    met_EE = pairs_EE.astype(np.float64)
    np.fill_diagonal(met_EE, 0.0)
    chance_EE = pairs_by_chance(pairs_EE)[np.ix_(order_E, order_E)]
    met_NN = _summed(met_EE[np.ix_(order_E, order_E)])
    chance_NN = _summed(chance_EE)
    lift_NN = np.divide(met_NN, chance_NN, out=np.ones_like(met_NN), where=chance_NN > 0)
    side = 560.0 / len(lift_NN)
    parts = [svg.text(_LEFT, 14, f"experts of layer {layer}, clusters side by side", "tick")]
    for a, row_N in enumerate(lift_NN.tolist()):
        for b, value in enumerate(row_N):
            if a == b and len(lift_NN) == len(pairs_EE):
                continue  # nobody meets itself
            tooltip = (
                f"{_name(order_E, a, len(lift_NN))} and {_name(order_E, b, len(lift_NN))}: {value:.2f} ×"
            )
            x, y = _LEFT + b * side, _TOP + a * side
            parts.append(svg.rect(x, y, side - 0.5, side - 0.5, svg.heat(EDGES, value), tooltip))
    parts.append(load_legend(_LEFT, _TOP + 560 + 22))
    return svg.figure(
        _TOP + 560 + 34,
        "Heat map of pairs of experts, meetings over those by chance",
        *parts,
        caption=(
            f"Tokens that chose both experts, over those expected from their loads, in layer {layer}, where "
            f"pairs are farthest from chance.{_together(len(pairs_EE))}"
        ),
    )


def _curves(found: FullStatistics) -> Markup:
    """Experts shared over a distance and activated by a stretch, on a logarithmic axis of tokens."""
    left, right, top, bottom = _LEFT, svg.WIDTH - 190, 16.0, 216.0
    span = np.log2(max(row.tokens for row in found.distances)) or 1.0
    parts: list[Markup] = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - value * (bottom - top)
        parts += [
            svg.line(left, y, right, y, "grid"),
            svg.text(left - 6, y + 4, format_share(value, 0), "tick end"),
        ]
    series = (("overlap", "dispatch", "experts shared"), ("union", "experts", "experts activated"))
    for name, class_, what in series:
        points = [
            (row.tokens, getattr(row, name)) for row in found.distances if getattr(row, name) is not None
        ]
        placed = [
            (
                left + float(np.log2(tokens) / span) * (right - left),
                bottom - value * (bottom - top),
                tokens,
                value,
            )
            for tokens, value in points
        ]
        for before, after in itertools.pairwise(placed):
            parts.append(svg.line(before[0], before[1], after[0], after[1], "edge"))
        for x, y, tokens, value in placed:
            tooltip = f"{plural(tokens, 'token')}: {format_share(value, 1)} {what}"
            parts.append(svg.rect(x - 4, y - 4, 8, 8, class_, tooltip))
    for row in found.distances:
        x = left + float(np.log2(row.tokens) / span) * (right - left)
        parts.append(svg.text(x, bottom + 16, format_count(row.tokens), "tick middle"))
    parts.append(svg.legend(left, bottom + 40, [(class_, what) for _, class_, what in series], 170))
    return svg.figure(
        bottom + 52,
        "Curves of experts shared over a distance, and activated by a stretch of tokens",
        *parts,
        caption=(
            "Shared: of a token's experts, those that the token so many positions before chose too. "
            "Activated: of all experts, those that some token of a stretch of so many chose. Means over "
            "layers."
        ),
    )


def _merged(values: Floats, axis: int) -> Floats:
    """Neighbours averaged until at most ``MOST_CELLS`` are left."""
    starts = _starts(values.shape[axis])
    sizes = np.diff([*starts, values.shape[axis]])
    return np.asarray(np.add.reduceat(values, starts, axis=axis) / sizes)


def _summed(values_EE: Floats) -> Floats:
    starts = _starts(len(values_EE))
    return np.asarray(np.add.reduceat(np.add.reduceat(values_EE, starts, axis=0), starts, axis=1))


def _starts(size: int) -> list[int]:
    return list(range(0, size, -(-size // MOST_CELLS)))


def _together(experts: int) -> str:
    together = -(-experts // MOST_CELLS)
    return f" A cell stands for {together} neighbouring experts." if together > 1 else ""


def _name(order_E: npt.NDArray[Any], cell: int, cells: int) -> str:
    together = -(-len(order_E) // MOST_CELLS)
    members = order_E[cell * together : (cell + 1) * together].tolist()
    return f"expert{'s' if len(members) > 1 else ''} {', '.join(map(str, members))}"
