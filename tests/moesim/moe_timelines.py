"""Timelines of MoE layers alone, as a real run writes them, from the seconds of each phase."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tests.traces.example_timelines import Row, timeline_of
from traces.timeline import PHASES, STREAMS, Timeline

FloatArray = NDArray[np.float64]

LAYERS = (1, 3, 4)


def moe_timeline(
    seconds: Mapping[str, FloatArray], run: str = "measured", layers: tuple[int, ...] = LAYERS
) -> Timeline:
    """Spans of phases that take these seconds, [R, W, L, G]; ranks wait for each other before collectives."""
    repeats, steps, _, ranks = seconds["experts"].shape
    rows: list[Row] = []

    def span(where: tuple[int, int, int], rank: int, phase: str, start: float, end: float) -> None:
        repeat, step, layer = where
        stream = STREAMS.index("communication" if phase in ("dispatch", "combine", "wait") else "compute")
        counts = (0, 0, 0)
        rows.append(
            (repeat, step, 0, layer, rank, stream, PHASES.index(phase), float(start), float(end), *counts)
        )

    now_G = np.zeros(ranks)
    for repeat in range(repeats):
        for step in range(steps):
            for i, layer in enumerate(layers):
                for phase in ("router", "shared_expert", "dispatch", "experts", "combine"):
                    if phase not in seconds:
                        continue
                    if phase in ("dispatch", "combine"):
                        for rank in range(ranks):
                            if now_G[rank] < now_G.max():
                                span((repeat, step, layer), rank, "wait", now_G[rank], now_G.max())
                        now_G[:] = now_G.max()
                    for rank in range(ranks):
                        end = now_G[rank] + seconds[phase][repeat, step, i, rank]
                        span((repeat, step, layer), rank, phase, now_G[rank], end)
                        now_G[rank] = end
            for rank in range(ranks):
                if now_G[rank] < now_G.max():
                    span((repeat, step, -1), rank, "wait", now_G[rank], now_G.max())
            now_G[:] = now_G.max()
    return timeline_of(rows, run)


def noisy_seconds(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    noise: float = 0.0,
    shared_expert: bool = False,
) -> dict[str, FloatArray]:
    """Log-normal seconds of each phase; repeats differ by a factor with this relative spread."""
    phases = ["router", "dispatch", "experts", "combine"] + ["shared_expert"] * shared_expert
    return {
        phase: rng.lognormal(-7, 0.7, (1, *shape[1:])) * np.exp(noise * rng.standard_normal(shape))
        for phase in phases
    }
