"""The state of the hardware over time: how fast each GPU and link is, from when on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.network import Network
from moesim.simulation.operations import Operation
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


@dataclass(frozen=True)
class Conditions:
    """What the engine needs to know of the hardware while it runs.

    Attributes:
        networks: the network before the first change and after each.
        changes_s: when something changes.
    """

    networks: Sequence[Network]
    changes_s: tuple[float, ...] = ()

    @property
    def changing(self) -> bool:
        """Whether anything changes during the run."""
        return bool(self.changes_s)

    def network(self, now: float) -> Network:
        """The network in force; a collective keeps the one that the last rank found when it entered."""
        return self.networks[bisect_right(self.changes_s, now)]

    def seconds(self, operation: Operation, rank: int, now: float) -> float:
        """How long an operation that starts now takes, a change in its midst included.

        Example: 4 s of work start at 1 s; from 3 s on the GPU takes twice as long for what is left: 2 + 4.
        """
        epoch = bisect_right(self.changes_s, now)
        left, at = 1.0, now
        stretch = 1.0 if operation.stretch_G is None else float(operation.stretch_G[rank])
        while True:
            whole = (float(operation.work_at(epoch)[rank]) + operation.overhead_s) * stretch
            end = at + left * whole
            if epoch == len(self.changes_s) or end <= self.changes_s[epoch]:
                return end - now
            left -= (self.changes_s[epoch] - at) / whole
            at = self.changes_s[epoch]
            epoch += 1
