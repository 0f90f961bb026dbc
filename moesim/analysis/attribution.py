"""Why a step takes as long as it does: the same steps simulated again, each time without one more cause."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from moesim.analysis.counterfactuals import (
    even,
    even_seconds,
    level,
    undisturbed,
    without_network,
    without_overhead,
)
from moesim.analysis.result_file import Attribution
from moesim.deployment.deployment import Deployment
from moesim.simulation.busy import Busy
from moesim.simulation.conditions import Conditions
from moesim.simulation.costs import Costs
from moesim.simulation.event import StepClock
from moesim.simulation.loop import simulate
from moesim.simulation.price import Step
from moesim.simulation.program import Program


class Counterfactuals:
    """Seconds of all steps with less and less in their way; told of each step as it ends.

    Attributes:
        healthy_s: without faults.
        data_parallel_s: what of ``healthy_s`` unequal tokens and contexts of the GPUs cost.
        balanced_s: also with every GPU given the mean over GPUs of each phase's duration.
        no_network_s: also with transfers that take no time, and no multiprocessors from kernels beside them.
        no_overhead_s: also without launches and fixed costs.
        migration_s: what of ``healthy_s`` moving experts cost.
    """

    def __init__(self, deployment: Deployment) -> None:
        scenario = deployment.scenario
        self._profile, self._ranks = scenario.profile, scenario.parallelism.ep
        self._costs = Costs(deployment)
        self._healthy = Conditions([deployment.pricing.network(scenario.profile)])
        self._overlaps = bool(scenario.overlap)
        # Where every GPU has the same at home, levelling would change nothing. In prefill ranks stand at
        # different positions of their requests, however many tokens each has.
        workload = scenario.workload
        amounts = workload.amounts.values()
        self._uneven = workload.phase != "decode" or any(each.each is None for each in amounts)
        self.healthy_s = self.data_parallel_s = self.balanced_s = 0.0
        self.no_network_s = self.no_overhead_s = self.migration_s = 0.0

    def observe(self, step: Step, clock: StepClock) -> None:
        """Add a step that has run."""
        disturbed = step.program is not step.healthy
        whole_s = self._seconds(step.healthy) if disturbed else clock.end_s - clock.start_s
        self.healthy_s += whole_s
        if step.settled is not step.healthy:
            self.migration_s += whole_s - self._seconds(step.settled)
        if self._uneven:
            self.data_parallel_s += whole_s - self._seconds(step.healthy.change(level))
        alone = (
            [self._costs.busy(part, self._profile, transfers=False) for part in step.parts]
            if self._overlaps
            else []
        )
        self._add_even(step.healthy, alone)

    def terms(self, step_s: float, steps: int) -> Attribution:
        """Seconds of a step by cause; they sum to ``step_s``.

        T0 is the run as asked; T1 with healthy hardware; T2 with, in each
        phase, every GPU given the mean over GPUs of that phase's duration; T3 also with a free
        network; T4 also without launches and fixed costs. A term may be negative, and is shown as it is.

        Args:
            step_s: T0, mean seconds of a step.
            steps: how many steps ran.
        """
        t1, t2, t3, t4 = (
            total / steps
            for total in (self.healthy_s, self.balanced_s, self.no_network_s, self.no_overhead_s)
        )
        return Attribution(
            hardware_s=step_s - t1, imbalance_s=t1 - t2, network_s=t2 - t3, overhead_s=t3 - t4, ideal_s=t4
        )

    def _add_even(self, program: Program, alone: Sequence[Busy]) -> None:
        """Add the seconds of an evened step, then without network, then without fixed costs too.

        ``alone``: of each micro-batch, what its kernels take where no transfers run beside them; empty
        without overlap.
        """
        network = self._healthy.network(0.0)
        if len(program.lanes) == 1:
            # Equal ranks on one lane never wait: the simulations that follow would only add up.
            kernels_s, transfers_s, fixed_s = even_seconds(program.operations, network)
            self.balanced_s += kernels_s + transfers_s + fixed_s
            self.no_network_s += kernels_s + fixed_s
            self.no_overhead_s += kernels_s
            return
        balanced = program.change(lambda operations: even(operations, network))
        no_network = program.change(partial(undisturbed, alone))
        no_network = no_network.change(lambda operations: even(operations, network)).change(without_network)
        self.balanced_s += self._seconds(balanced, 1)
        self.no_network_s += self._seconds(no_network, 1)
        self.no_overhead_s += self._seconds(no_network.change(without_overhead), 1)

    def _seconds(self, program: Program, ranks: int | None = None) -> float:
        """Length of one step; one rank stands for all where all are equal."""
        (clock,) = simulate([program], ranks or self._ranks, self._healthy)
        return clock.end_s - clock.start_s
