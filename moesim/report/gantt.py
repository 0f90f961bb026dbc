"""The timeline of one step, or of a few layers of it: rows are GPUs, colours are phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from moesim.analysis.culprit import Straggler
from moesim.analysis.stragglers import Slowest
from moesim.analysis.typical import typical
from moesim.report import svg
from moesim.report.markup import Markup, tag
from moesim.units import format_seconds
from traces.timeline import PHASES, STREAMS, Timeline

# What fits a page: more layers become a window around the worst one, more GPUs a selection.
MOST_LAYERS: Final = 3
MOST_GPUS: Final = 32
LEFT: Final = 62.0
_TOP = 30.0


def gantt(timeline: Timeline, stragglers: Sequence[Straggler | Slowest]) -> Markup:
    """The figure for the step whose time is closest to the mean.

    Args:
        stragglers: rows of ``result.json``; the window lies around the layer that loses most.
    """
    if not len(timeline):
        return tag("p", "The timeline is empty.", class_="note")
    first = timeline.select(timeline.repeat_N == timeline.repeat_N.min())
    spans = typical(first, first.step_N, np.mean)
    step = int(spans.step_N[0])
    spans, layers, whole = _window(spans, stragglers)
    gpus, all_gpus = _gpus(spans, layers, stragglers)
    spans = spans.select(np.isin(spans.rank_N, gpus))
    origin, end = float(spans.start_s_N.min()), float(spans.end_s_N.max())
    lanes = 2 if _streams_overlap(spans) else 1
    high = 20.0 if len(gpus) <= 16 else 15.0
    bottom = _TOP + high * len(gpus)
    right = svg.WIDTH - 10
    parts = [svg.time_axis(LEFT, right, _TOP, bottom, max(end - origin, 1e-9))]
    scale = (right - LEFT) / max(end - origin, 1e-9)
    slow = {row.rank for row in stragglers if row.layer in layers and row.cause != "none"}
    for row, gpu in enumerate(gpus):
        class_ = "tick small end strong" if gpu in slow else "tick small end"
        parts.append(svg.text(LEFT - 6, _TOP + row * high + high / 2 + 3.5, f"GPU {gpu}", class_))
    parts.append(draw_spans(spans, gpus, origin, scale, high, lanes))
    parts.append(draw_brackets(spans, layers, origin, scale))
    used = [PHASES[code] for code in np.unique(spans.phase_N)]
    parts.append(svg.legend(LEFT, bottom + 46, [(name, name.replace("_", " ")) for name in used]))
    shown = (
        "all its layers" if whole else f"layers {', '.join(map(str, layers))}, around the one that loses most"
    )
    which = "all GPUs" if all_gpus else f"{len(gpus)} of the GPUs, the stragglers among them"
    two = " The upper half of a row is its compute stream, the lower its communication." if lanes == 2 else ""
    bold = " Stragglers' names are bold." if slow else ""
    return svg.figure(
        bottom + 56,
        f"Timeline of step {step}: what each GPU does when",
        *parts,
        caption=f"Step {step}, the one closest to the mean: {shown}; {which}. "
        f"Time 0 is the start of what is shown.{bold}{two}",
    )


def _window(spans: Timeline, stragglers: Sequence[Straggler | Slowest]) -> tuple[Timeline, list[int], bool]:
    """The spans to draw, their layers, and whether that is the whole step."""
    layers = np.unique(spans.layer_N[spans.layer_N >= 0]).tolist()
    if len(layers) <= MOST_LAYERS:
        return spans, layers, True
    lost = {row.layer: row.lost_s for row in stragglers}
    worst = max(layers, key=lambda layer: lost.get(layer, -1.0))
    first = min(max(layers.index(worst) - MOST_LAYERS // 2, 0), len(layers) - MOST_LAYERS)
    chosen = layers[first : first + MOST_LAYERS]
    return spans.select(np.isin(spans.layer_N, chosen)), chosen, False


def _gpus(
    spans: Timeline, layers: Sequence[int], stragglers: Sequence[Straggler | Slowest]
) -> tuple[list[int], bool]:
    """The GPUs to draw: all, or the window's stragglers and others evenly spread; whether it is all."""
    present = np.unique(spans.rank_N).tolist()
    if len(present) <= MOST_GPUS:
        return present, True
    chosen = {row.rank for row in stragglers if row.layer in layers} & set(present)
    free = MOST_GPUS - len(chosen)
    spread = [present[index * len(present) // free] for index in range(free)]
    return sorted(chosen | set(spread)), False


def _streams_overlap(spans: Timeline) -> bool:
    """Whether a GPU computes and communicates at once anywhere in the window."""
    order = np.lexsort((spans.end_s_N, spans.start_s_N, spans.rank_N))
    rank, start, end = spans.rank_N[order], spans.start_s_N[order], spans.end_s_N[order]
    # Within a lane nothing overlaps, so an overlap always shows between neighbours in time.
    return bool(((rank[1:] == rank[:-1]) & (start[1:] < end[:-1])).any())


def draw_spans(
    spans: Timeline,
    gpus: Sequence[int],
    origin: float,
    scale: float,
    high: float,
    lanes: int,
    top: float = _TOP,
) -> Markup:
    """One box per span that is at least a tenth of a unit wide; a row of height ``high`` for each GPU."""
    row_of = {gpu: row for row, gpu in enumerate(gpus)}
    parts = []
    columns = (spans.rank_N, spans.stream_N, spans.phase_N, spans.layer_N, spans.start_s_N, spans.end_s_N)
    work = (spans.assignments_N, spans.bytes_N)
    for rank, stream, phase, layer, start, end, assigned, size in zip(
        *(column.tolist() for column in (*columns, *work)), strict=True
    ):
        if (end - start) * scale < 0.1:
            continue
        place = f"layer {layer}" if layer >= 0 else "whole step"
        tooltip = f"GPU {rank}, {place}, {PHASES[phase].replace('_', ' ')} ({STREAMS[stream]}): "
        tooltip += format_seconds(end - start)
        if assigned:
            tooltip += f", {assigned:,} assignments"
        if size:
            tooltip += f", {size / 1e6:,.2f} MB"
        y = top + row_of[rank] * high + (stream * high / 2 if lanes == 2 else 0)
        tall = (high - 2) / lanes
        x = LEFT + (start - origin) * scale
        parts.append(svg.rect(x, y + 1, (end - start) * scale, tall, f"span {PHASES[phase]}", tooltip))
    return tag("g", *parts)


def draw_brackets(
    spans: Timeline, layers: Sequence[int], origin: float, scale: float, top: float = _TOP
) -> Markup:
    """Above the rows, from where to where each layer runs."""
    parts: list[Markup] = []
    for index, layer in enumerate(layers):
        rows = spans.layer_N == layer
        start, end = float(spans.start_s_N[rows].min()), float(spans.end_s_N[rows].max())
        x1, x2, y = (
            LEFT + (start - origin) * scale,
            LEFT + (end - origin) * scale,
            top - 6 - 3 * (index % 2),
        )
        label = f"layer {layer}, {format_seconds(end - start)}"
        parts += [
            svg.line(x1, y, x2, y, "edge"),
            svg.line(x1, y, x1, y + 5, "edge"),
            svg.line(x2, y, x2, y + 5, "edge"),
            svg.text((x1 + x2) / 2, y - 5, label, "tick middle"),
        ]
    return tag("g", *parts)
