"""A step without one cause of its time: the network, launches; and a step of equals as one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moesim.hardware.network import Network
from moesim.simulation.busy import Busy, FloatArray
from moesim.simulation.operations import Operations
from moesim.simulation.program import Program

# Equals that were added up in another order.
_ALIKE = 1e-12


def without_network(program: Program, alone: Sequence[Busy] = ()) -> Program:
    """The same step with transfers that take no time.

    Args:
        alone: of each micro-batch, what its kernels take with no transfers beside them; empty where none
            run beside them anyway.
    """
    table = program.table
    busy_OG = _with_busy(table, alone)
    return program.of(replace(table.without_transfers(), busy_OG=busy_OG, wire_OG=np.zeros_like(busy_OG)))


def without_overhead(program: Program) -> Program:
    """The same step without launches and fixed costs."""
    return program.of(replace(program.table, overhead_O=np.zeros(len(program.table))))


def with_experts(program: Program, busy: Sequence[Busy]) -> Program:
    """The same step with other seconds of the experts' kernels.

    Args:
        busy: these seconds, of each micro-batch.
    """
    table, experts_O = program.table, program.table.of_phase("experts")
    busy_OG = table.busy_OG.copy()
    busy_OG[experts_O] = _with_busy(table, busy)[experts_O]
    return program.of(replace(table, busy_OG=busy_OG))


def as_one(program: Program, network: Network) -> Program:
    """The same step on one GPU, where all do the same: equals never wait for each other.

    Where any GPU differs from the others, the program itself.
    """
    table = program.table
    if not _alike(table.busy_OG):
        return program
    wire_OG, none_G = table.wire_OG.copy(), np.zeros(table.wire_OG.shape[1])
    hops = zip(table.transfers.first_GG, table.transfers.second_GG, strict=True)
    for at, (first_GG, second_GG) in zip(np.flatnonzero(table.collective_O), hops, strict=True):
        wire_OG[at] += network.collective(none_G, first_GG, second_GG)
    if not _alike(wire_OG):
        return program
    one = {name: getattr(table, name)[:, :1] for name in ("busy_OG", "assignments_OG", "unique_OG")}
    return program.of(replace(table.without_transfers(), wire_OG=wire_OG[:, :1], **one))


def _alike(seconds_OG: FloatArray) -> bool:
    """Whether every GPU takes as long as the first."""
    return bool((np.ptp(seconds_OG, axis=1) <= _ALIKE * seconds_OG[:, 0]).all())


def _with_busy(table: Operations, busy: Sequence[Busy]) -> FloatArray:
    """[O, G]: the operations' seconds with those of the kernels, on as many GPUs as these are."""
    busy_OG = table.busy_OG.copy()
    kernels_O = np.array([phase not in ("dispatch", "combine") for phase, _, _ in table.keys])
    part_O = np.array([micro_batch for _, _, micro_batch in table.keys])
    for number, each in enumerate(busy):
        busy_OG[kernels_O & (part_O == number)] = each.seconds_XG[:, : busy_OG.shape[1]]
    return busy_OG
