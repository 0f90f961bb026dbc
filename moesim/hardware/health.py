"""The health of the hardware over time: which part of full speed each GPU and link has, from when on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.spec.fault import Fault

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Health:
    """Parts of full speed in one epoch, [G] each: arithmetic, NVLink port, NIC."""

    clock_G: FloatArray
    nvlink_G: FloatArray
    nic_G: FloatArray


def epochs(faults: Sequence[Fault], ranks: int) -> tuple[tuple[float, ...], list[Health]]:
    """Times at which something changes, ascending, and the state before the first and after each.

    Faults of one device multiply. Those from 0 s on are there from the start.

    >>> from moesim.spec.fault import Fault
    >>> changes_s, states = epochs([Fault(gpu=1, clock=0.5, from_s=2.0)], 2)
    >>> changes_s, [state.clock_G.tolist() for state in states]
    ((2.0,), [[1.0, 1.0], [1.0, 0.5]])
    """
    changes_s = tuple(sorted({each.from_s for each in faults if each.from_s > 0 and each.jitter is None}))
    states = []
    for now in (0.0, *changes_s):
        health = Health(np.ones(ranks), np.ones(ranks), np.ones(ranks))
        for each in faults:
            if each.from_s > now or each.jitter is not None:
                continue
            if each.clock is not None:
                health.clock_G[each.device] *= each.clock
            elif each.bandwidth is not None:
                (health.nic_G if each.nic is not None else health.nvlink_G)[each.device] *= each.bandwidth
        states.append(health)
    return changes_s, states


def jitter_G(faults: Sequence[Fault], ranks: int) -> FloatArray:
    """Standard deviation of the logarithm of each rank's kernel durations; independent ones add up."""
    variance_G = np.zeros(ranks)
    for each in faults:
        if each.jitter is not None:
            variance_G[slice(None) if each.device is None else each.device] += each.jitter**2
    return np.sqrt(variance_G)
