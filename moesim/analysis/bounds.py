"""What no schedule can beat: the seconds of each phase at the data sheet's rates, averaged over GPUs."""

from __future__ import annotations

import numpy as np

from moesim.deployment.deployment import Deployment
from moesim.simulation.clock import StepClock
from moesim.simulation.costs import Costs
from moesim.simulation.price import Step
from moesim.spec.profile import DATA_SHEET


class Bounds:
    """Bounds of all steps; told of each step as it ends."""

    def __init__(self, deployment: Deployment) -> None:
        self._costs = Costs(deployment)
        self._links = deployment.pricing.fabric(DATA_SHEET)
        self._steps = 0
        self._seconds: dict[str, float] = {}

    def observe(self, step: Step, clock: StepClock) -> None:
        """Add a step; experts that move are no part of a step's work.

        A collective takes its bytes over all ports of a class, the slower class.
        """
        self._steps += 1
        table, links = step.settled.table, self._links
        # What has no kernels on a perfect machine, such as a host that waits, is no work.
        for part in step.parts:
            busy = self._costs.busy(part, DATA_SHEET)
            for phase, rows in busy.layout.rows.items():
                self._add(phase, float(busy.seconds_XG[rows].mean(axis=1).sum()))
        received_CG = table.transfers.received_G
        inside_C = table.transfers.inside_bytes(links.gpus_per_node)
        across_C = received_CG.sum(axis=1) - inside_C
        seconds_C = np.maximum(inside_C / links.nvlink_bandwidth, across_C / links.nic_bandwidth)
        for phase in ("dispatch", "combine"):
            own_C = np.array([key[0] == phase for key in table.keys])[table.collective_O]
            self._add(phase, float(seconds_C[own_C].sum()) / received_CG.shape[1])

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def per_step(self) -> dict[str, float]:
        """By phase, seconds of a mean step."""
        return {phase: seconds / self._steps for phase, seconds in self._seconds.items()}
