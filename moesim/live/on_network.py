"""Measured kernels on the simulated network: ranks whose work was measured one after another never met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moesim.analysis.cube import Cube
from moesim.analysis.validation import phase_seconds
from moesim.deployment.deployment import Deployment
from moesim.errors import TimelineError
from moesim.live.repeats import join_repeats
from moesim.live.simulated import draw_repeats, play
from moesim.simulation.operations import Operation
from moesim.spec.profile import Phase
from traces.timeline import PHASES, Timeline

# Of kernels alone; what else a step of the MoE part has are collectives.
_KERNELS: tuple[Phase, ...] = ("router", "shared_expert", "experts")

# By phase, true layer index and micro-batch: [G] seconds, launches inside.
_Taken = Mapping[tuple[Phase, int, int], NDArray[np.float64]]


def on_simulated_network(deployment: Deployment, measured: Timeline) -> Timeline:
    """A run whose kernels take as long as they were measured, repeat by repeat.

    Phases of kernels that ``measured`` holds replace the cost model's. Which rank waits for which, and what
    dispatch and combine take, is simulated, jitter of the latter included.

    Raises:
        TimelineError: ``measured`` lacks a span of the deployment's steps, layers and ranks.
    """
    scenario = deployment.scenario
    ranks, layers = scenario.parallelism.ep, scenario.model.moe_layers
    repeats, drawn = [], draw_repeats(deployment)
    for repeat in np.unique(measured.repeat_N).tolist():
        programs = next(drawn)
        taken = _taken(measured.select(measured.repeat_N == repeat), (len(programs), layers, ranks))
        steps = [
            program.change(partial(_as_measured, own)) for program, own in zip(programs, taken, strict=True)
        ]
        repeats.append(play(deployment, steps, measured.run))
    return join_repeats(repeats)


def _as_measured(taken: _Taken, operations: Sequence[Operation]) -> list[Operation]:
    """The operations of a step with kernels that take what was measured."""
    return [
        operation
        if (busy_G := taken.get((operation.phase, operation.layer, operation.micro_batch))) is None
        else replace(operation, busy_G=busy_G, overhead_s=0.0, stretch_G=None)
        for operation in operations
    ]


def _taken(repeat: Timeline, cells: tuple[int, tuple[int, ...], int]) -> list[_Taken]:
    """What the kernels of each step took in one repeat."""
    cube = Cube.of(repeat)
    found = (cube.steps, tuple(cube.layers.tolist()), cube.ranks)
    if found != cells:
        steps, layers, ranks = (f"{each}" for each in cells)
        rule = f"must be of {steps} steps, layers {layers} and {ranks} ranks"
        raise TimelineError(rule, field=repeat.run, got=found)
    phases = [phase for phase in _KERNELS if (repeat.phase_N == PHASES.index(phase)).any()]
    batches = cube.micro_batches()
    seconds = {phase: [phase_seconds(batch, phase) for batch in batches] for phase in phases}
    return [
        {
            (phase, layer, batch): seconds[phase][batch][step, i]
            for phase in phases
            for i, layer in enumerate(cube.layers.tolist())
            for batch in range(len(batches))
        }
        for step in range(cube.steps)
    ]
