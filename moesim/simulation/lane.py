"""A step of one lane without SimPy: when each rank is done, for whoever asks what if and not when."""

from __future__ import annotations

import numpy as np

from moesim.hardware.network import Network
from moesim.simulation.program import Program


def lane_s(program: Program, network: Network) -> float:
    """Seconds of a step that runs in order, on hardware that nothing changes; as on the event clock.

    Ranks meet in collectives only, so that between two of them each adds up its own operations.
    """
    (lane,) = program.lanes
    operations = [program.operations[at] for at in lane]
    seconds_OG = np.array([operation.seconds_G for operation in operations])
    left_G = at_G = np.zeros(seconds_OG.shape[1])
    done = 0
    for at, operation in enumerate(operations):
        if operation.transfer is None:
            continue
        first_GG, second_GG = operation.transfer.first_GG, operation.transfer.second_GG
        at_G = at_G + seconds_OG[done:at].sum(axis=0)
        at_G = left_G = network.collective(at_G, first_GG, second_GG, left_G)
        done = at
    return float((at_G + seconds_OG[done:].sum(axis=0)).max())
