"""The heat map layer × GPU: assignments relative to the layer's mean, and what bounds each layer."""

from __future__ import annotations

from typing import Final

import numpy as np

from moesim.report import svg
from moesim.report.markup import Markup, tag
from moesim.spec.question import plural
from traces.timeline import PHASES, Timeline, WorkTable

# Borders between the eight colours, as multiples of the layer's mean; the fourth holds the mean.
EDGES: Final = (0.5, 0.7, 0.9, 1.1, 1.4, 2.0, 3.0)
# More columns than this cannot be told apart; neighbouring GPUs then share one.
MOST_COLUMNS: Final = 128
_LEFT, _RIGHT, _TOP = 62.0, 190.0, 46.0


def load_table(timeline: Timeline, gpus: int) -> tuple[np.ndarray, np.ndarray]:
    """Assignments of each GPU in each MoE layer, summed over steps and repeats.

    Returns:
        layers_L: the true indices of layers with expert work; load_LG: float64.
    """
    rows = np.flatnonzero((timeline.phase_N == PHASES.index("experts")) & (timeline.layer_N >= 0))
    layers_L, index_N = np.unique(timeline.layer_N[rows], return_inverse=True)
    flat = index_N * gpus + timeline.rank_N[rows]
    load = np.bincount(flat, timeline.assignments_N[rows], minlength=len(layers_L) * gpus)
    return layers_L, load.reshape(len(layers_L), gpus)


def slot_bound(work: WorkTable, layers_L: np.ndarray, load_LG: np.ndarray) -> np.ndarray:
    """The hottest slot over the mean GPU (axis L): no exchange of slots takes a layer's max below it.

    Never below 1, which is perfect balance.
    """
    rows = np.flatnonzero((work.phase_N == PHASES.index("experts")) & np.isin(work.layer_N, layers_L))
    bound_L = np.ones(len(layers_L))
    if not len(rows):
        return bound_L
    slots = int(work.destination_N[rows].max()) + 1
    flat = np.searchsorted(layers_L, work.layer_N[rows]).astype(np.int64) * slots + work.destination_N[rows]
    # Only slots that occur: their numbers in a file may be far apart.
    used, index_N = np.unique(flat, return_inverse=True)
    load = np.bincount(index_N, work.count_N[rows])
    hottest_L = np.zeros(len(layers_L))
    np.maximum.at(hottest_L, used // slots, load)
    mean_L = load_LG.mean(1)
    np.divide(hottest_L, mean_L, out=bound_L, where=mean_L > 0)
    return np.maximum(bound_L, 1.0)


def heatmap(timeline: Timeline, work: WorkTable, gpus: int, gpus_per_node: int, steps: int) -> Markup:
    """The figure: a row for each MoE layer, a column for each GPU, the layer's max / mean beside it."""
    layers_L, load_LG = load_table(timeline, gpus)
    if not len(layers_L):
        return tag("p", "The run has no expert work to show.", class_="note")
    mean_L = load_LG.mean(1)
    relative_LG = np.divide(load_LG, mean_L[:, None], out=np.ones_like(load_LG), where=mean_L[:, None] > 0)
    bound_L = slot_bound(work, layers_L, load_LG)
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
            x = _LEFT + column * wide
            parts.append(svg.rect(x, y, wide - 0.5, high - 0.5, svg.heat(EDGES, value), tooltip))
    parts.append(_margin(layers_L, relative_LG, bound_L, high))
    bottom = _TOP + high * len(layers_L)
    parts.append(svg.text(_LEFT, bottom + 22, "times the layer's mean", "tick"))
    parts.append(svg.heat_legend(_LEFT, bottom + 40, EDGES, " ×", 86))
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
