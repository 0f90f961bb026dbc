"""The state of the hardware over time: how fast each GPU and link is, from when on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.network import Network
from moesim.simulation.operations import Operation

FloatArray = NDArray[np.float64]


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
        while True:
            whole = float(operation.seconds_at(epoch)[rank])
            end = at + left * whole
            if epoch == len(self.changes_s) or end <= self.changes_s[epoch]:
                return end - now
            left -= (self.changes_s[epoch] - at) / whole
            at = self.changes_s[epoch]
            epoch += 1
