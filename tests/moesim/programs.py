"""Small steps for tests of the clock and of what is read from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from moesim.hardware.network import Fabric, Ports
from moesim.hardware.transfer import Transfer
from moesim.simulation.clock import StepClock
from moesim.simulation.conditions import Conditions
from moesim.simulation.loop import simulate
from moesim.simulation.operations import Operation
from moesim.simulation.program import Program, beside_shared_expert, in_sequence, two_batches
from moesim.spec.profile import Phase

# 1 byte a second everywhere, no latency: times can be added up by hand.
SLOW = Fabric(2, 1.0, 1.0, 0.0, 0.0)


def compute(phase: Phase, layer: int, *seconds: float, overhead: float = 0.0) -> Operation:
    ranks = len(seconds)
    none = np.zeros(ranks, np.int64)
    return Operation(phase, layer, np.array(seconds), np.zeros(ranks), overhead, none, none)


def collective(phase: Phase, layer: int, bytes_GG: list[list[float]], overhead: float = 0.0) -> Operation:
    ranks = len(bytes_GG)
    none, transfer = np.zeros(ranks, np.int64), Transfer(np.array(bytes_GG), np.zeros((ranks, ranks)))
    return Operation(phase, layer, np.zeros(ranks), np.zeros(ranks), overhead, none, none, transfer)


def run(operations: list[Operation], ranks: int = 2, fabric: Fabric = SLOW) -> StepClock:
    (clock,) = simulate([in_sequence(operations)], ranks, Conditions([Ports(fabric)]), "event")
    return clock


# Two ranks, two layers. Rank 1 holds the hot expert of layer 0, rank 0 attends longer in layer 1.
LAYERS = [
    compute("attention", 0, 1.0, 1.0),
    compute("router", 0, 0.5, 0.5),
    collective("dispatch", 0, [[0.0, 4.0], [1.0, 0.0]]),
    compute("experts", 0, 2.0, 6.0),
    collective("combine", 0, [[0.0, 1.0], [4.0, 0.0]]),
    compute("attention", 1, 3.0, 1.0),
    compute("router", 1, 0.5, 0.5),
    collective("dispatch", 1, [[0.0, 2.0], [2.0, 0.0]], overhead=0.25),
    compute("experts", 1, 1.0, 1.0),
    collective("combine", 1, [[0.0, 2.0], [2.0, 0.0]]),
    compute("other", -1, 1.0, 1.0),
]


@st.composite
def chains(draw: st.DrawFn) -> list[Operation]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    operations = []
    for layer in range(draw(st.integers(1, 3))):
        operations.append(compute("attention", layer, *rng.random(4)))
        operations.append(
            collective("dispatch", layer, (rng.integers(0, 4, (4, 4)) * (1 - np.eye(4))).tolist())
        )
        operations.append(compute("experts", layer, *rng.random(4)))
        operations.append(
            collective("combine", layer, (rng.integers(0, 4, (4, 4)) * (1 - np.eye(4))).tolist())
        )
    return operations


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Steps of one lane, with a shared expert beside transfers, or of two micro-batches; some stretched."""
    kind = draw(st.sampled_from(["in_sequence", "shared", "two", "two_early"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def chain(layers: int) -> list[Operation]:
        made = []
        for layer in range(layers):
            made.append(compute("attention", layer, *rng.random(4), overhead=0.1))
            made.append(compute("router", layer, *rng.random(4)))
            for phase in ("dispatch", "combine"):
                first_GG, second_GG = (rng.integers(0, 4, (4, 4)) * (1 - np.eye(4)) for _ in range(2))
                second_GG = second_GG * (rng.random() < 0.5)
                transfer = Transfer(first_GG, second_GG)
                both = collective(phase, layer, first_GG.tolist(), overhead=0.2)
                made.append(replace(both, transfer=transfer, busy_G=rng.random(4)))
                if phase == "dispatch":
                    made.append(compute("shared_expert", layer, *rng.random(4)))
                    made.append(compute("experts", layer, *(rng.random(4) * (rng.random(4) < 0.7))))
        made.append(compute("other", -1, *rng.random(4)))
        if draw(st.booleans()):
            made = [replace(each, stretch_G=rng.uniform(0.5, 2.0, 4)) for each in made]
        return made

    layers = draw(st.integers(1, 3))
    if kind == "in_sequence":
        program = in_sequence(chain(layers))
    elif kind == "shared":
        program = beside_shared_expert(chain(layers))
    else:
        program = two_batches(chain(layers), chain(layers), early_dispatch=kind == "two_early")
    if draw(st.booleans()):
        program = program.begin_with(
            collective("other", -1, [[0.0, 5.0, 0.0, 0.0], *[[0.0] * 4] * 3], overhead=1.0)
        )
    return program
