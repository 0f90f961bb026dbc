"""Figures of a measured and a simulated run: both timelines, errors by layer and rank, time against time."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.analysis.typical import over_steps, typical
from moesim.analysis.validation import Validation
from moesim.report import svg
from moesim.report.gantt import LEFT, MOST_GPUS, MOST_LAYERS, draw_brackets, draw_spans
from moesim.report.markup import Markup, tag
from moesim.units import format_seconds, format_share
from traces.timeline import PHASES, Timeline

FloatArray = NDArray[np.float64]

# Borders between the eight colours of an error; the fourth holds none.
EDGES: Final = (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.4)
# More columns, and more points, than these cannot be told apart.
MOST_COLUMNS: Final = 96
MOST_POINTS: Final = 1500

_GAP = 34.0


def both_timelines(found: Validation, measured: Timeline, simulated: Timeline) -> Markup:
    """A few layers of one step on one time axis, measured above simulated.

    The step whose time is closest to the mean, in the repeat closest to its median; the layers around the
    one that takes longest.
    """
    step = int(np.abs(found.measured["step"] - found.measured["step"].mean()).argmin())
    longest = int(found.measured["layer"][step].argmax())
    first = max(min(longest - MOST_LAYERS // 2, len(found.layers) - MOST_LAYERS), 0)
    layers = found.layers[first : first + MOST_LAYERS].tolist()
    gpus = _spread(found.ranks, MOST_GPUS)
    blocks = {}
    for name, timeline in (("measured", measured), ("simulated", simulated)):
        shown = (timeline.step_N == step) & np.isin(timeline.layer_N, layers) & np.isin(timeline.rank_N, gpus)
        block = timeline.select(shown)
        blocks[name] = typical(block, block.repeat_N, np.median)
    seconds = max(float(block.end_s_N.max() - block.start_s_N.min()) for block in blocks.values())
    high = 20.0 if len(gpus) <= 16 else 15.0
    right = svg.WIDTH - 10
    scale = (right - LEFT) / seconds
    tall = _GAP + high * len(gpus)
    bottom = tall * len(blocks)
    parts = [svg.time_axis(LEFT, right, _GAP, bottom, seconds)]
    for row, (name, block) in enumerate(blocks.items()):
        top, origin = row * tall + _GAP, float(block.start_s_N.min())
        parts.append(svg.text(0, top - 8, name, "strong"))
        for place, gpu in enumerate(gpus):
            parts.append(
                svg.text(LEFT - 6, top + place * high + high / 2 + 3.5, f"rank {gpu}", "tick small end")
            )
        parts.append(draw_spans(block, gpus, origin, scale, high, 1, top))
        parts.append(draw_brackets(block, layers, origin, scale, top))
    used = sorted({code for block in blocks.values() for code in np.unique(block.phase_N).tolist()})
    legend = [(PHASES[code], PHASES[code].replace("_", " ")) for code in used]
    parts.append(svg.legend(LEFT, bottom + 46, legend))
    return svg.figure(
        bottom + 56,
        f"Timelines of step {step}: what each rank does when, measured above simulated",
        *parts,
        caption=f"Step {step}, the one closest to the mean: layers {', '.join(map(str, layers))}, around the "
        "one that takes longest. Measured: the repeat closest to the median.",
    )


def error_map(found: Validation) -> Markup:
    """A row for each MoE layer; a column for each rank and phase, and one for the whole layer."""
    ranks = _spread(found.ranks, MOST_COLUMNS // 3)
    blocks = [
        (phase, over_steps(found.error(phase)[..., ranks])) for phase in ("experts", "dispatch", "combine")
    ]
    blocks.append(("layer", over_steps(found.error("layer")[..., None])))
    between, top = 26.0, 46.0
    columns = sum(block.shape[1] for _, block in blocks)
    wide = min((svg.WIDTH - LEFT - 10 - between * (len(blocks) - 1)) / columns, 90.0)
    high = min(max(560 / len(found.layers), 9.0), 22.0)
    parts = [svg.text(LEFT - 6, top - 8, "layer", "tick end")]
    every = 1 if high >= 10.5 else 2
    for row, layer in enumerate(found.layers.tolist()):
        if row % every == 0:
            parts.append(svg.text(LEFT - 6, top + row * high + high / 2 + 3.5, str(layer), "tick small end"))
    x = LEFT
    for name, error_LG in blocks:
        parts.append(svg.text(x, 14, name, "tick"))
        for column in range(error_LG.shape[1]):
            who = "" if name == "layer" else f", rank {ranks[column]}"
            if who and (wide >= 14 or column % 4 == 0):
                parts.append(svg.text(x + wide / 2, top - 8, str(ranks[column]), "tick small middle"))
            for row, layer in enumerate(found.layers.tolist()):
                error = float(error_LG[row, column])
                class_ = "bar" if np.isnan(error) else svg.heat(EDGES, error)
                said = "took no time" if np.isnan(error) else format_share(error)
                parts.append(
                    svg.rect(
                        x,
                        top + row * high,
                        wide - 0.5,
                        high - 0.5,
                        class_,
                        f"layer {layer}, {name}{who}: {said}",
                    )
                )
            x += wide
        x += between
    bottom = top + high * len(found.layers)
    parts.append(_legend(bottom + 40))
    return svg.figure(
        bottom + 52,
        "Heat map of errors by layer and rank",
        *parts,
        caption="Simulated minus measured over measured, the median over steps. Blue: the simulation is too "
        "fast; red: too slow.",
    )


def scatter(found: Validation) -> Markup:
    """Simulated against measured time: expert time of each rank, and layers."""
    size, top = 360.0, 24.0
    parts: list[Markup] = []
    for column, (quantity, what) in enumerate((("experts", "expert time of a rank"), ("layer", "layer"))):
        left = LEFT + column * (size + 90)
        parts.append(_cloud(found, quantity, what, left, top, size))
    return svg.figure(
        top + size + 40,
        "Simulated against measured time of experts and layers",
        *parts,
        caption="Each point is one layer of one step (left: on one rank), the median over repeats. "
        "Lines: equal, and 10 % to either side.",
    )


def _cloud(found: Validation, quantity: str, what: str, left: float, top: float, size: float) -> Markup:
    measured, simulated = found.measured[quantity].ravel(), found.simulated[quantity].ravel()
    high = 1.05 * float(max(measured.max(), simulated.max())) or 1.0
    to_unit, unit = svg.time_unit(high)
    bottom, scale = top + size, size / high
    parts = [svg.text(left, top - 10, f"{what}, simulated, {unit}", "tick")]
    for value in svg.ticks(0, high * to_unit, 6):
        at = value / to_unit * scale
        parts += [
            svg.line(left + at, top, left + at, bottom, "grid"),
            svg.line(left, bottom - at, left + size, bottom - at, "grid"),
            svg.text(left + at, bottom + 14, f"{value:g}", "tick middle"),
            svg.text(left - 5, bottom - at + 4, f"{value:g}", "tick end"),
        ]
    parts.append(svg.text(left + size, bottom + 30, f"measured, {unit}", "tick end"))
    for slope, class_ in ((1.0, "bound"), (1.1, "edge"), (1 / 1.1, "edge")):
        x, y = (size, size * slope) if slope <= 1 else (size / slope, size)
        parts.append(svg.line(left, bottom, left + x, bottom - y, class_))
    shape = found.measured[quantity].shape
    for index in _spread(len(measured), MOST_POINTS):
        step, layer, *rank = (int(each) for each in np.unravel_index(index, shape))
        name = f"step {step}, layer {found.layers[layer]}" + (f", rank {rank[0]}" if rank else "")
        tooltip = (
            f"{name}: measured {format_seconds(float(measured[index]))}, "
            f"simulated {format_seconds(float(simulated[index]))}"
        )
        x, y = left + measured[index] * scale, bottom - simulated[index] * scale
        parts.append(svg.rect(x - 2, y - 2, 4, 4, "experts" if rank else "attention", tooltip))
    return tag("g", *parts)


def _spread(count: int, most: int) -> list[int]:
    """All of ``count`` indices, or ``most`` of them evenly spread.

    >>> _spread(3, 5), _spread(10, 4)
    ([0, 1, 2], [0, 2, 5, 7])
    """
    kept = min(count, most)
    return [index * count // kept for index in range(kept)]


def _legend(y: float) -> Markup:
    edges = [f"{100 * edge:g}" for edge in EDGES]
    return tag("g", svg.text(LEFT, y - 18, "error", "tick"), svg.heat_legend(LEFT, y, edges, "%", " %", 104))
