"""What no schedule can beat: the seconds of each phase at the data sheet's rates, averaged over GPUs."""

from __future__ import annotations

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
        ideal, links = [self._costs.busy(part, DATA_SHEET) for part in step.parts], self._links
        for operation in step.settled.operations:
            transfer = operation.transfer
            if transfer is None:
                # What has no kernels on a perfect machine, such as a host that waits, is no work.
                kernels_G = ideal[operation.micro_batch].get((operation.phase, operation.layer))
                seconds = 0.0 if kernels_G is None else float(kernels_G.mean())
            else:
                bytes_GG = transfer.first_GG + transfer.second_GG
                across = transfer.cross_node_bytes(links.gpus_per_node)
                inside = float(bytes_GG.sum()) - across
                seconds = max(inside / links.nvlink_bandwidth, across / links.nic_bandwidth) / len(bytes_GG)
            self._seconds[operation.phase] = self._seconds.get(operation.phase, 0.0) + seconds

    def per_step(self) -> dict[str, float]:
        """By phase, seconds of a mean step."""
        return {phase: seconds / self._steps for phase, seconds in self._seconds.items()}
