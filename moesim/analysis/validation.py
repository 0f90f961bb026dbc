"""How far a simulated timeline is from a measured one: phase by phase, layer by layer, rank by rank.

Axes: R repeats, W steps, L MoE layers, G ranks; X all steps and layers. What is compared is the median over
repeats of each cell. A *step* runs from its first span's start to its last one's end, a *layer* from the
first rank's router to the last rank's combine; a phase is its own span, without waiting for other ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moesim.analysis.cube import Cube, max_over_mean, step_times
from moesim.analysis.validation_file import Error, LayerErrors, Pair, RankErrors, RankPairs, Spread
from moesim.errors import TimelineError
from moesim.spec.question import plural
from traces.timeline import PHASES, Timeline

FloatArray = NDArray[np.float64]

# Of each layer on each rank; models without a shared expert lack one of them.
COMPARED: Final = ("router", "shared_expert", "dispatch", "experts", "combine")

# The medians hold when they are no more uncertain than this, in the median cell and in 19 of 20: less than
# half of the median and of the 95th percentile that a good prediction may be wrong.
STEADY: Final = {"median": 0.02, "p95": 0.05}

Seconds = dict[str, FloatArray]
"""By quantity (``step`` [R, W], ``layer`` [R, W, L], phases [R, W, L, G]), or medians without the R."""

# The true indices of the layers, and what they took.
_Table = tuple[NDArray[np.int32], Seconds]


@dataclass(frozen=True)
class RankOrder:
    """Whether ranks stand in the right order, over pairs of ranks within a step and layer.

    Attributes:
        tau: Kendall's tau-b (Kendall 1945, Biometrika 33 (3)): concordant minus discordant pairs, over the
            geometric mean of all pairs and of those that the simulation does not tie; None without any.
        pairs: how many were compared.
        left_out: how many differ by no more than the noise of the measurement.
    """

    tau: float | None
    pairs: int
    left_out: int


@dataclass(frozen=True)
class Validation:
    """A measured and a simulated run of the same work.

    Attributes:
        layers: [L] true indices of the MoE layers.
        repeats: of the measurement.
        measured, simulated: medians over repeats.
        noise: by quantity, for each cell: how uncertain the measured median is, relative to it. Half of how
            far the medians of the first and the second half of the repeats lie apart, which is the standard
            error of their mean; empty with a single repeat.
    """

    layers: NDArray[np.int32]
    repeats: int
    measured: Seconds
    simulated: Seconds
    noise: Seconds

    def error(self, quantity: str) -> FloatArray:
        """Simulated minus measured over measured, for each cell; NaN where nothing was measured."""
        return _relative(self.simulated[quantity] - self.measured[quantity], self.measured[quantity])

    @property
    def steady(self) -> bool:
        """Whether the medians of expert time hold; with a single repeat nobody knows."""
        noise = spread(self.noise["experts"]) if self.noise else None
        return noise is not None and all(getattr(noise, name) <= limit for name, limit in STEADY.items())

    def rank_order(self) -> RankOrder:
        """Kendall's tau-b of the ranks' expert time.

        Left out are pairs that differ, relative to the larger, by no more than twice the 95th percentile of
        the noise, which both of them have.
        """
        noise = spread(self.noise["experts"]) if self.noise else None
        within = 0.0 if noise is None else 2 * noise.p95
        measured_XG, simulated_XG = (
            seconds["experts"].reshape(-1, self.ranks) for seconds in (self.measured, self.simulated)
        )
        agreement = pairs = tied = possible = 0
        for rank in range(self.ranks - 1):
            own, others = measured_XG[:, rank, None], measured_XG[:, rank + 1 :]
            differ = np.abs(own - others) > within * np.maximum(own, others)
            sign = np.sign(simulated_XG[:, rank, None] - simulated_XG[:, rank + 1 :])
            agreement += int((np.sign(own - others) * sign)[differ].sum())
            tied += int((sign[differ] == 0).sum())
            pairs += int(differ.sum())
            possible += differ.size
        # No pair that counts is tied in the measurement, so that only one factor of tau-b has ties.
        untied = pairs - tied
        tau = agreement / float(np.sqrt(pairs * untied)) if untied else None
        return RankOrder(tau, pairs, possible - pairs)

    @property
    def ranks(self) -> int:
        """G."""
        return int(self.measured["experts"].shape[-1])

    def summary(self) -> dict[str, Any]:
        """The part of ``validation.json`` that two timelines determine."""
        order = self.rank_order()
        return {
            "ranks": self.ranks,
            "repeats": self.repeats,
            "seconds": {quantity: self._mean(quantity) for quantity in self.measured},
            "error": {quantity: _error(self.error(quantity)) for quantity in self.measured},
            "noise": {quantity: spread(cells) for quantity, cells in self.noise.items()},
            "per_rank": [self._rank(rank) for rank in range(self.ranks)],
            "per_layer": [self._layer(i, layer) for i, layer in enumerate(self.layers.tolist())],
            "straggler_ratio": Pair(
                measured=max_over_mean(self.measured["experts"]),
                simulated=max_over_mean(self.simulated["experts"]),
            ),
            "rank_order_tau": order.tau,
            "rank_order_pairs": RankPairs(compared=order.pairs, left_out=order.left_out),
        }

    def _mean(self, quantity: str, cells: Any = ...) -> Pair:
        return Pair(
            measured=float(self.measured[quantity][cells].mean()),
            simulated=float(self.simulated[quantity][cells].mean()),
        )

    def _rank(self, rank: int) -> RankErrors:
        phases = [phase for phase in COMPARED if phase in self.measured]
        return RankErrors(
            rank=rank,
            seconds={phase: self._mean(phase, (..., rank)) for phase in phases},
            error={phase: _error(self.error(phase)[..., rank]) for phase in phases},
        )

    def _layer(self, i: int, layer: int) -> LayerErrors:
        return LayerErrors(
            layer=layer,
            seconds=self._mean("layer", (slice(None), i)),
            error={
                quantity: _error(self.error(quantity)[:, i])
                for quantity in self.measured
                if quantity != "step"
            },
        )


def compare(measured: Timeline, simulated: Timeline) -> Validation:
    """Lay a simulated timeline beside a measured one of the same work.

    Raises:
        TimelineError: one lacks a span, or they are not of the same steps, layers and ranks.
    """
    layers, seconds = _seconds(measured)
    others = _seconds(simulated)
    _check_same((layers, seconds), others, f"the simulation {simulated.run}")
    medians, repeats = _medians(seconds), len(seconds["step"])
    noise = {}
    if repeats > 1:
        first, second = (_medians(seconds, half) for half in (slice(repeats // 2), slice(repeats // 2, None)))
        noise = {
            quantity: _relative(np.abs(first[quantity] - second[quantity]) / 2, median)
            for quantity, median in medians.items()
        }
    return Validation(layers, repeats, medians, _medians(others[1]), noise)


def spread(cells: FloatArray) -> Spread | None:
    """Median and 95th percentile; None where no cell has a value."""
    known = cells[~np.isnan(cells)]
    if not len(known):
        return None
    return Spread(median=float(np.median(known)), p95=float(np.percentile(known, 95)))


def _error(cells: FloatArray) -> Error | None:
    size = spread(np.abs(cells))
    return None if size is None else Error(**size.plain(), bias=float(np.nanmedian(cells)))


def _relative(difference: FloatArray, whole: FloatArray) -> FloatArray:
    relative = np.full(whole.shape, np.nan)
    np.divide(difference, whole, out=relative, where=whole > 0)
    return relative


def _medians(seconds: Seconds, repeats: slice = slice(None)) -> Seconds:
    return {quantity: np.median(values[repeats], axis=0) for quantity, values in seconds.items()}


def _seconds(timeline: Timeline) -> _Table:
    """Every quantity with an axis of repeats.

    Raises:
        TimelineError: a cell of a phase has no span, or more than one.
    """
    if not len(timeline):
        raise TimelineError("holds no spans", field=timeline.run)
    tables = []
    for repeat in np.unique(timeline.repeat_N).tolist():
        tables.append(_repeat(timeline.select(timeline.repeat_N == repeat)))
        _check_same(tables[0], tables[-1], f"repeat {repeat} of {timeline.run}")
    layers = tables[0][0]
    return layers, {
        quantity: np.concatenate([seconds[quantity] for _, seconds in tables]) for quantity in tables[0][1]
    }


def _repeat(part: Timeline) -> _Table:
    """The quantities of one repeat, R = 1.

    Of two micro-batches a phase takes what both of them take, and a layer ends when both have left it.
    """
    numbers = np.unique(part.micro_batch_N).tolist()
    if numbers not in ([0], [0, 1]):
        raise TimelineError("must have micro-batch 0 alone, or 0 and 1", field=part.run, got=numbers[-1])
    cube = Cube.of(part)
    batches = cube.micro_batches()
    present = [phase for phase in COMPARED if phase != "shared_expert" or _spans(part, phase)]
    phases = {phase: np.sum([phase_seconds(each, phase) for each in batches], axis=0) for phase in present}
    begin_WLG = np.min([each.values("router", each.timeline.start_s_N) for each in batches], axis=0)
    end_WLG = np.max([each.values("combine", each.timeline.end_s_N) for each in batches], axis=0)
    lasts_WL = end_WLG.max(axis=-1) - begin_WLG.min(axis=-1)
    seconds = {"step": step_times(part), "layer": lasts_WL, **phases}
    return cube.layers, {quantity: values[None] for quantity, values in seconds.items()}


def phase_seconds(cube: Cube, phase: str) -> FloatArray:
    """[W, L, G]: seconds of a phase in one repeat, where every cell must have one span of it.

    Raises:
        TimelineError: a cell has none, or several.
    """
    part, spans = cube.timeline, _spans(cube.timeline, phase)
    # As many spans as cells comes first: a table as large as a file claims may not fit the memory.
    whole = spans == cube.steps * len(cube.layers) * cube.ranks > 0
    if not whole or (cube.values(phase, np.ones(len(part))) != 1).any():
        raise TimelineError(
            f"must have one span of {phase} for each of {cube.steps} steps, {len(cube.layers)} MoE "
            f"layers and {cube.ranks} ranks",
            field=f"repeat {part.repeat_N[0]} of {part.run}",
            got=f"{spans} spans",
        )
    return cube.seconds(phase)


def _spans(timeline: Timeline, phase: str) -> int:
    return int((timeline.phase_N == PHASES.index(phase)).sum())


def _check_same(table: _Table, other: _Table, name: str) -> None:
    """Refuse a table of other cells than the first."""
    if _cells(table) != _cells(other) or table[0].tolist() != other[0].tolist():
        raise TimelineError(f"must be of {_cells(table)}", field=name, got=_cells(other))


def _cells(table: _Table) -> str:
    layers, seconds = table
    _, steps, _, ranks = seconds["experts"].shape
    shared = "with" if "shared_expert" in seconds else "without"
    return (
        f"{plural(steps, 'step')}, {plural(len(layers), 'layer')} from {layers[0]} on, "
        f"{plural(ranks, 'rank')}, {shared} a shared expert"
    )
