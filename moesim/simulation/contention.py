"""Kernels and transfers beside each other: what they cost each other in memory.

A kernel wants memory for a part u of its time, a transfer for a part v. While both run they want it at once
for u · v of that time, and then each waits for the other's bytes: both end u · v · (time beside each other)
later. A transfer in the background, without multiprocessors of its own, borrows all of them to be sent and
received: the kernels beside it pause for its floor and while its bytes pass through memory. Which runs beside
which follows from the program, run once with mean durations on one GPU for all.

O operations, G GPUs. Seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.simulation.program import Program

FloatArray = NDArray[np.float64]


def contended(program: Program, alone_O: FloatArray, memory_OG: FloatArray, *, background: bool) -> Program:
    """The program with what its lanes cost each other; the same where it has one lane.

    The seconds are added to ``wire_G``: they are there because something is transferred.

    Args:
        alone_O: mean seconds of each operation with nothing beside it.
        memory_OG: seconds of its traffic through memory.
        background: whether transfers have no multiprocessors of their own.
    """
    if len(program.order.lanes) == 1:
        return program
    operations = program.operations
    start_O, end_O = timetable(program, alone_O)
    share_OG = memory_OG / np.maximum(alone_O, np.finfo(float).tiny)[:, None]
    added_OG = np.zeros_like(memory_OG)
    for kernel, transfer, beside_s in _pairs(program, start_O, end_O):
        both_G = beside_s * np.minimum(share_OG[kernel], 1.0) * np.minimum(share_OG[transfer], 1.0)
        added_OG[transfer] += both_G
        if background:
            floor_s = operations[transfer].overhead_s
            both_G = (floor_s + memory_OG[transfer]) * (beside_s / alone_O[transfer])
        added_OG[kernel] += both_G
    return program.change(
        lambda _: [
            replace(operation, wire_G=operation.wire_G + added_G)
            for operation, added_G in zip(operations, added_OG, strict=True)
        ]
    )


def timetable(program: Program, seconds_O: FloatArray) -> tuple[FloatArray, FloatArray]:
    """When each operation starts and ends on one GPU that waits for no other."""
    start_O, end_O = np.zeros(len(seconds_O)), np.zeros(len(seconds_O))
    sequence_O, before_O, after_O = (each_O.tolist() for each_O in program.order.sequence)
    for at in sequence_O:
        waited = [end_O[other] for other in (before_O[at], after_O[at]) if other >= 0]
        start_O[at] = max(waited, default=0.0)
        end_O[at] = start_O[at] + seconds_O[at]
    return start_O, end_O


def _pairs(program: Program, start_O: FloatArray, end_O: FloatArray) -> Sequence[tuple[int, int, float]]:
    """(kernel, transfer, seconds beside each other) for all that meet."""
    kernels, transfers = ([at for at in lane if end_O[at] > start_O[at]] for lane in program.order.lanes)
    pairs, first = [], 0
    for transfer in transfers:
        while first < len(kernels) and end_O[kernels[first]] <= start_O[transfer]:
            first += 1
        for kernel in kernels[first:]:
            if start_O[kernel] >= end_O[transfer]:
                break
            beside_s = min(end_O[kernel], end_O[transfer]) - max(start_O[kernel], start_O[transfer])
            pairs.append((kernel, transfer, float(beside_s)))
    return pairs
