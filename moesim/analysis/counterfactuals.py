"""A step without one cause of its time: the network, launches; and a step of equals as one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moesim.hardware.network import Network
from moesim.simulation.busy import Busy, FloatArray
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
        replace(operation, busy_G=_busy_G(alone, operation), wire_G=operation.wire_G * 0.0, transfer=None)
        for operation in operations
    ]


def without_overhead(operations: Sequence[Operation]) -> list[Operation]:
    """The same step without launches and fixed costs."""
    return [replace(operation, overhead_s=0.0) for operation in operations]


def with_experts(busy: Sequence[Busy], operations: Sequence[Operation]) -> list[Operation]:
    """The same step with other seconds of the experts' kernels.

    Args:
        busy: these seconds, of each micro-batch.
    """
    return [
        replace(operation, busy_G=_busy_G(busy, operation)) if operation.phase == "experts" else operation
        for operation in operations
    ]


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
        if any(each_G.max() - each_G.min() > _ALIKE * each_G[0] for each_G in (operation.busy_G, wire_G)):
            return program
        alike.append(replace(operation, busy_G=operation.busy_G[:1], wire_G=wire_G[:1], transfer=None))
    return program.change(lambda _: alike)


def _busy_G(busy: Sequence[Busy], operation: Operation) -> FloatArray:
    """An operation's seconds, of the first GPU where it stands for all; its own by default."""
    own_G = operation.busy_G
    if not busy:
        return own_G
    return busy[operation.micro_batch].get((operation.phase, operation.layer), own_G)[: len(own_G)]
