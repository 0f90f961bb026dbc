"""Small steps for tests of the clock and of what is read from it."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from moesim.hardware.network import Fabric, Ports
from moesim.hardware.transfer import Transfer
from moesim.simulation.conditions import Conditions
from moesim.simulation.event import StepClock
from moesim.simulation.loop import simulate
from moesim.simulation.operations import Operation
from moesim.simulation.program import in_sequence
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
    (clock,) = simulate([in_sequence(operations)], ranks, Conditions([Ports(fabric)]))
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
