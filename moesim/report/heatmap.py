"""The heat map layer × GPU: assignments relative to the layer's mean, and what bounds each layer."""

from __future__ import annotations

from typing import Final

import numpy as np

from moesim.analysis.layer_loads import load_table, over_mean, slot_bound
from moesim.report import svg
from moesim.report.markup import Markup, tag
from moesim.spec.question import plural
from traces.timeline import Timeline, WorkTable

# Borders between the eight colours, as multiples of the layer's mean; the fourth holds the mean.
EDGES: Final = (0.5, 0.7, 0.9, 1.1, 1.4, 2.0, 3.0)
# More columns than this cannot be told apart; neighbouring GPUs then share one.
MOST_COLUMNS: Final = 128
_LEFT, _RIGHT, _TOP = 62.0, 190.0, 46.0


def heatmap(timeline: Timeline, work: WorkTable, gpus: int, gpus_per_node: int, steps: int) -> Markup:
    """The figure: a row for each MoE layer, a column for each GPU, the layer's max / mean beside it."""
    layers_L, load_LG = load_table(timeline, gpus)
    if not len(layers_L):
        return tag("p", "The run has no expert work to show.", class_="note")
    relative_LG, bound_L = over_mean(load_LG), slot_bound(work, layers_L, load_LG)
    together = -(-gpus // MOST_COLUMNS)
    columns = -(-gpus // together)
    wide = (svg.WIDTH - _LEFT - _RIGHT) / columns
    high = min(max(620 / len(layers_L), 9.0), 22.0)
    parts = [_column_labels(gpus, gpus_per_node, together, wide, high * len(layers_L))]
    every = 1 if high >= 10.5 else 2
    for row, layer in enumerate(layers_L.tolist()):
        y = _TOP + row * high
        if row % every == 0:
            parts.append(svg.text(_LEFT - 6, y + high / 2 + 3.5, str(layer), "tick small end"))
        for column in range(columns):
            members = slice(column * together, (column + 1) * together)
            value = float(relative_LG[row, members].max())
            per_step = float(load_LG[row, members].max()) / steps
            name = _gpu_name(members.start, min(members.stop, gpus) - 1)
            tooltip = f"layer {layer}, {name}: {value:.2f} × the mean, {per_step:.4g} assignments a step"
            class_ = svg.heat(EDGES, value)
            parts.append(svg.rect(_LEFT + column * wide, y, wide - 0.5, high - 0.5, class_, tooltip))
    parts.append(_margin(layers_L, relative_LG, bound_L, high))
    bottom = _TOP + high * len(layers_L)
    parts += [svg.text(_LEFT, bottom + 22, "times the layer's mean", "tick"), load_legend(_LEFT, bottom + 40)]
    worst = int(relative_LG.max(1).argmax())
    shared_note = f" One column is the most loaded of {together} neighbouring GPUs." if together > 1 else ""
    return svg.figure(
        bottom + 52,
        "Heat map of assignments, layer by GPU, relative to each layer's mean",
        *parts,
        caption=(
            "Assignments of each GPU in each MoE layer over the layer's mean, "
            f"{plural(steps, 'step')} together. Bars: max / mean of the layer. Marks: the hottest slot "
            "over the mean GPU, below which no exchange of slots gets the bar (1 is perfect balance). "
            f"Worst: layer {layers_L[worst]}, "
            f"{relative_LG[worst].max():.2f} with its mark at {bound_L[worst]:.2f}.{shared_note}"
        ),
    )


def _gpu_name(first: int, last: int) -> str:
    return f"GPU {first}" if first == last else f"GPUs {first} to {last}"


def _column_labels(gpus: int, gpus_per_node: int, together: int, wide: float, height: float) -> Markup:
    """GPU numbers above the columns, the axes' names, and a line where a node ends."""
    parts = [
        svg.text(_LEFT, 12, "GPU", "tick"),
        svg.text(_LEFT - 6, _TOP - 8, "layer", "tick end"),
    ]
    apart = wide / together
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, gpus) if step * apart >= 16 or step >= gpus)
    for gpu in range(0, gpus, every):
        x = _LEFT + (gpu // together + 0.5) * wide
        parts.append(svg.text(x, _TOP - 8, str(gpu), "tick small middle"))
    for first in range(gpus_per_node, gpus, gpus_per_node):
        x = _LEFT + first * apart - 0.25
        parts.append(svg.line(x, _TOP - 20, x, _TOP + height, "edge"))
    if gpus > gpus_per_node and gpus_per_node * apart > 50:
        for node, first in enumerate(range(0, gpus, gpus_per_node)):
            middle = _LEFT + (first + min(gpus_per_node, gpus - first) / 2) * apart
            parts.append(svg.text(middle, _TOP - 22, f"node {node}", "tick small middle"))
    return tag("g", *parts)


def _margin(layers_L: np.ndarray, relative_LG: np.ndarray, bound_L: np.ndarray, high: float) -> Markup:
    """Bars of max / mean to the right of the map, from 0, with the bound as a mark."""
    left, width = svg.WIDTH - _RIGHT + 16, _RIGHT - 56
    max_L = relative_LG.max(1)
    scale = width / max(float(max_L.max()), float(bound_L.max()))
    bottom = _TOP + high * len(layers_L)
    parts = [
        svg.text(left, 12, "max / mean of the layer", "tick"),
        svg.line(left + scale, _TOP - 6, left + scale, bottom, "edge"),
        svg.text(left + scale, _TOP - 8, "1", "tick small middle"),
    ]
    for row, layer in enumerate(layers_L.tolist()):
        y, value, bound = _TOP + row * high, float(max_L[row]), float(bound_L[row])
        tooltip = f"layer {layer}: max / mean {value:.2f}, hottest slot {bound:.2f}"
        parts.append(svg.rect(left, y + 1, value * scale, high - 2.5, "bar", tooltip))
        parts.append(svg.line(left + bound * scale, y, left + bound * scale, y + high - 1, "bound"))
        parts.append(svg.text(svg.WIDTH - 4, y + high / 2 + 3.5, f"{value:.2f}", "tick small end"))
    return tag("g", *parts)


def load_legend(x: float, y: float) -> Markup:
    """Of colours that say how much more than the mean something is."""
    return svg.heat_legend(x, y, [f"{edge:g}" for edge in EDGES], "×", "", 86)
