"""A step without one cause of its time: the network, launches; and a step of equals as one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moesim.hardware.network import Network
from moesim.simulation.busy import Busy
from moesim.simulation.operations import Operation
from moesim.simulation.program import Program

# Equals that were added up in another order.
_ALIKE = 1e-12


def without_network(alone: Sequence[Busy], operations: Sequence[Operation]) -> list[Operation]:
    """The same step with transfers that take no time.

    Args:
        alone: of each micro-batch, what its kernels take with no transfers beside them; empty where none
            run beside them anyway.
    """
    return [
        replace(
            operation,
            busy_G=alone[operation.micro_batch][operation.phase, operation.layer]
            if alone and operation.transfer is None
            else operation.busy_G,
            wire_G=np.zeros_like(operation.wire_G),
            transfer=None,
        )
        for operation in operations
    ]


def without_overhead(operations: Sequence[Operation]) -> list[Operation]:
    """The same step without launches and fixed costs."""
    return [replace(operation, overhead_s=0.0) for operation in operations]


def as_one(program: Program, network: Network) -> Program:
    """The same step on one GPU, where all do the same: equals never wait for each other.

    Where any GPU differs from the others, the program itself.
    """
    alike: list[Operation] = []
    for operation in program.operations:
        wire_G, transfer = operation.wire_G, operation.transfer
        if transfer is not None:
            own_G = network.collective(np.zeros(len(wire_G)), transfer.first_GG, transfer.second_GG)
            wire_G = wire_G + own_G
        both_2G = np.array([operation.busy_G, wire_G])
        if not np.allclose(both_2G, both_2G[:, :1], rtol=_ALIKE, atol=0.0):
            return program
        alike.append(replace(operation, busy_G=operation.busy_G[:1], wire_G=wire_G[:1], transfer=None))
    return program.change(lambda _: alike)
