"""A step without one cause of its time: unevenness, unequal homes, the network, launches.

O operations, G ranks. A counterfactual is a function from the operations of a step to others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.network import Network
from moesim.simulation.busy import Busy
from moesim.simulation.operations import Operation

FloatArray = NDArray[np.float64]


def even(operations: Sequence[Operation], network: Network) -> list[Operation]:
    """The same step with each phase evened out, as one GPU that stands for all of them.

    Each operation takes every GPU the mean over GPUs of its own duration; a collective's own duration is
    what it takes when all GPUs enter together. GPUs that are always equal never wait, so one serves for
    all.
    """
    evened = []
    for operation in operations:
        busy_1 = np.array([operation.busy_G.mean()])
        wire_1 = np.array([_own_wire_G(operation, network).mean()])
        evened.append(replace(operation, busy_G=busy_1, wire_G=wire_1, transfer=None))
    return evened


def even_seconds(operations: Sequence[Operation], network: Network) -> tuple[float, float, float]:
    """Seconds of kernels, of transfers and of fixed costs in an evened step, each added up."""
    busy_s = float(np.mean([operation.busy_G for operation in operations], axis=1).sum())
    wire_s = sum(
        float(_own_wire_G(operation, network).mean())
        for operation in operations
        if operation.transfer is not None or operation.wire_G.any()
    )
    return busy_s, wire_s, sum(operation.overhead_s for operation in operations)


def _own_wire_G(operation: Operation, network: Network) -> FloatArray:
    """Seconds on links, of a collective when all GPUs enter it together."""
    transfer = operation.transfer
    if transfer is None:
        return operation.wire_G
    ended_G = network.collective(np.zeros(len(operation.wire_G)), transfer.first_GG, transfer.second_GG)
    return ended_G + operation.wire_G


def level(operations: Sequence[Operation]) -> list[Operation]:
    """The same step with tokens and contexts spread evenly: what runs at home takes every GPU the mean."""

    def levelled(operation: Operation) -> Operation:
        ones_G = np.ones(len(operation.busy_G))
        return replace(
            operation, busy_G=operation.busy_G.mean() * ones_G, wire_G=operation.wire_G.mean() * ones_G
        )

    moe = ("dispatch", "experts", "combine")
    return [operation if operation.phase in moe else levelled(operation) for operation in operations]


def without_network(operations: Sequence[Operation]) -> list[Operation]:
    """An evened step whose transfers take no time."""
    return [replace(operation, wire_G=np.zeros(1)) for operation in operations]


def without_overhead(operations: Sequence[Operation]) -> list[Operation]:
    """The same step without launches and fixed costs."""
    return [replace(operation, overhead_s=0.0) for operation in operations]


def undisturbed(alone: Sequence[Busy], operations: Sequence[Operation]) -> list[Operation]:
    """The same step with kernels that take what they take with no transfers beside them.

    Args:
        alone: these seconds, of each micro-batch.
    """
    return [
        replace(operation, busy_G=alone[operation.micro_batch][operation.phase, operation.layer])
        if operation.transfer is None
        else operation
        for operation in operations
    ]
