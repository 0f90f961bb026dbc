"""What the phases of the layers took, and what they had to do.

Axes: R repeats, C cells (steps and layers of one plan), G ranks, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.analysis.cube import Cube
from moesim.analysis.validation import phase_seconds
from moesim.deployment.deployment import Deployment
from moesim.dispatch.work import Work
from moesim.errors import TimelineError
from moesim.hardware.transfer import Transfer
from moesim.simulation.price import priced
from traces.timeline import Timeline

FloatArray = NDArray[np.float64]

COLLECTIVES = ("dispatch", "combine")
PHASES = ("router", "experts", *COLLECTIVES)

# What a rank does right before it enters a collective.
_BEFORE = {"dispatch": "router", "combine": "experts"}

# A normal distribution's standard deviation over its median absolute deviation, and the standard error of
# its median over that of its mean.
_DEVIATION = 1.4826
_MEDIAN = 1.2533


@dataclass(frozen=True)
class Observed:
    """One plan as it ran.

    Attributes:
        deployment: what the plan was written from.
        work: counted as the simulation counts it, one row for each cell.
        tokens_CG: at home on each rank.
        repeats: by phase, [R, C, G]: seconds of each repeat, without waiting for other ranks.
        seconds: by phase, [C, G]: their medians.
        error: by phase, [C, G]: standard errors of these medians, relative to them.
        entered: by collective, [C, G]: when each rank entered, in seconds from the last one's entry.
        transfers: by collective: what each cell moved.
    """

    deployment: Deployment
    work: Work
    tokens_CG: FloatArray
    repeats: dict[str, FloatArray]
    seconds: dict[str, FloatArray]
    error: dict[str, FloatArray]
    entered: dict[str, FloatArray]
    transfers: dict[str, list[Transfer]]

    @classmethod
    def of(cls, deployment: Deployment, timeline: Timeline) -> Observed:
        """From a measured timeline of the deployment's plan.

        Raises:
            TimelineError: it lacks a span, or is of other steps, layers or ranks.
        """
        steps = priced(deployment)
        parts = [part for step in steps for part in step.parts]
        operations = [operation for step in steps for operation in step.program.operations]
        ranks, layers = deployment.scenario.parallelism.ep, deployment.scenario.model.moe_layers
        cubes = [
            Cube.of(timeline.select(timeline.repeat_N == repeat)) for repeat in np.unique(timeline.repeat_N)
        ]
        for cube in cubes:
            found = (cube.steps, tuple(cube.layers.tolist()), cube.ranks)
            if found != (len(parts), layers, ranks):
                rule = f"must be of {len(parts)} steps, layers {layers} and {ranks} ranks"
                raise TimelineError(rule, field=timeline.run, got=found)
        seconds_RCG = {
            phase: np.stack([phase_seconds(cube, phase).reshape(-1, ranks) for cube in cubes])
            for phase in PHASES
        }
        return cls(
            deployment,
            Work.join([part.work for part in parts]),
            np.repeat([part.tokens.tokens_G for part in parts], len(layers), axis=0).astype(np.float64),
            seconds_RCG,
            {phase: np.median(each, axis=0) for phase, each in seconds_RCG.items()},
            {phase: standard_error(each) for phase, each in seconds_RCG.items()},
            {
                phase: np.median([_entered(cube, phase).reshape(-1, ranks) for cube in cubes], axis=0)
                for phase in COLLECTIVES
            },
            {
                phase: [each.transfer for each in operations if each.phase == phase and each.transfer]
                for phase in COLLECTIVES
            },
        )


def standard_error(seconds_RX: FloatArray) -> FloatArray:
    """[X]: of the median over repeats, relative to it; robust against single disturbed repeats.

    >>> standard_error(np.array([[9.0], [10.0], [11.0], [99.0]])).round(3).tolist()
    [0.088]
    """
    median_X = np.median(seconds_RX, axis=0)
    deviation_X = _DEVIATION * np.median(np.abs(seconds_RX - median_X), axis=0)
    # What takes no time, such as transfers of a rank on its own, is certain.
    relative_X = deviation_X / np.where(median_X, median_X, 1.0)
    error_X: FloatArray = _MEDIAN * relative_X / np.sqrt(len(seconds_RX))
    return error_X


def _entered(cube: Cube, phase: str) -> FloatArray:
    """[W, L, G]: when each rank was ready for a collective, from when the last one was."""
    ready_WLG = cube.values(_BEFORE[phase], cube.timeline.end_s_N)
    entered_WLG: FloatArray = ready_WLG - ready_WLG.max(axis=-1, keepdims=True)
    return entered_WLG
