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
    at_G = left_G = np.zeros(len(program.operations[0].busy_G))
    for at in lane:
        operation = program.operations[at]
        if operation.transfer is not None:
            first_GG, second_GG = operation.transfer.first_GG, operation.transfer.second_GG
            at_G = left_G = network.collective(at_G, first_GG, second_GG, left_G)
        at_G = at_G + operation.seconds_G
    return float(at_G.max())
