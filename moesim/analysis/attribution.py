"""Why a step takes as long as it does: the same steps simulated again, each time without one more cause."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from moesim.analysis.counterfactuals import as_one, without_network, without_overhead
from moesim.analysis.even import (
    EvenExperts,
    Pairs,
    even_experts,
    even_homes,
    even_routing,
    even_traffic,
    fewest_slots,
)
from moesim.analysis.result_file import Attribution, Ceilings
from moesim.deployment.deployment import Deployment
from moesim.simulation.conditions import Conditions
from moesim.simulation.costs import Costs
from moesim.simulation.event import StepClock
from moesim.simulation.lane import lane_s
from moesim.simulation.loop import simulate
from moesim.simulation.part import Part
from moesim.simulation.price import Step
from moesim.simulation.program import Program


class Counterfactuals:
    """Seconds of all steps with less and less in their way; told of each step as it ends.

    Attributes:
        seconds: of all steps together, without faults (``healthy``), also without experts that move
            (``settled``), also with even ``homes``, ``experts`` and ``traffic``, also without ``network``,
            also without ``overhead``; and with even traffic after the best possible ``router``.
    """

    def __init__(self, deployment: Deployment) -> None:
        scenario = deployment.scenario
        self._profile, self._ranks = scenario.profile, scenario.parallelism.ep
        self._model, self._costs = scenario.model, Costs(deployment)
        self._network = deployment.pricing.network(scenario.profile)
        self._overlaps = bool(scenario.overlap)
        self._pairs = Pairs(self._ranks, deployment.pricing.gpus_per_node, scenario.dispatch.record.relayed)
        # A router may choose any expert, so what counts is which kinds of slots there are.
        placement = deployment.placement
        kind_LS = self._model.kind_LS(placement.slot_expert_LS)
        kind_LS = np.zeros(placement.slot_expert_LS.shape, np.int16) if kind_LS is None else kind_LS
        filled_LSC = (kind_LS[:, :, None] == np.arange(len(self._model.kinds))) & (
            placement.slot_expert_LS >= 0
        )[:, :, None]
        self._slots_LC = filled_LSC.sum(axis=1) / self._ranks
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def migration_s(self) -> float:
        """What moving experts cost, of all steps."""
        return self.seconds["healthy"] - self.seconds["settled"]

    def observe(self, step: Step, clock: StepClock) -> None:
        """Add a step that has run."""
        as_run_s = clock.end_s - clock.start_s
        healthy_s = as_run_s if step.program is step.healthy else self._seconds(step.healthy)
        self.seconds["healthy"] += healthy_s
        settled_s = healthy_s if step.settled is step.healthy else self._seconds(step.settled)
        self.seconds["settled"] += settled_s
        for name, seconds in self._evened(step.parts, settled_s):
            self.seconds[name] += seconds

    def terms(self, step_s: float, steps: int) -> Attribution:
        """Seconds of a step by cause; but for the parts of imbalance they sum to ``step_s``.

        A term may be negative, and is shown as it is.

        Args:
            step_s: T0, mean seconds of a step.
            steps: how many steps ran.
        """
        at = {name: seconds / steps for name, seconds in self.seconds.items()}
        return Attribution(
            hardware_s=step_s - at["healthy"],
            migration_s=at["healthy"] - at["settled"],
            imbalance_s=at["settled"] - at["traffic"],
            homes_s=at["settled"] - at["homes"],
            experts_s=at["homes"] - at["experts"],
            traffic_s=at["experts"] - at["traffic"],
            network_s=at["traffic"] - at["network"],
            overhead_s=at["network"] - at["overhead"],
            ideal_s=at["overhead"],
        )

    def ceilings(self, steps: int) -> Ceilings:
        """The most that placements and routers can win of a step."""
        settled_s, even_s, routed_s = (
            self.seconds[name] / steps for name in ("settled", "traffic", "router")
        )
        return Ceilings(placements_s=settled_s - even_s, routers_s=settled_s - routed_s)

    def _evened(self, parts: Sequence[Part], settled_s: float) -> Iterator[tuple[str, float]]:
        """Seconds of a healthy step with ever more of its work spread evenly."""
        pairs, kinds = self._pairs, len(self._model.kinds)
        at_home = [even_homes(part, pairs) for part in parts]
        # Where every GPU has the same at home nothing has changed.
        yield "homes", self._seconds(self._program(at_home)) if self._uneven(parts) else settled_s
        spread = [even_experts(part, kinds) for part in at_home]
        yield "experts", self._seconds(self._program(spread))
        even = [even_traffic(part, pairs) for part in spread]
        balanced = self._program(even)
        yield "traffic", (even_s := self._seconds(balanced))
        # Which of the two is faster depends on whether weights or rows take the time.
        routed = [even_routing(part, self._slots_LC) for part in even], [fewest_slots(part) for part in even]
        yield "router", min(even_s, *(self._seconds(self._program(each)) for each in routed))
        yield from self._freed(balanced, even)

    def _freed(self, balanced: Program, even: Sequence[EvenExperts]) -> Iterator[tuple[str, float]]:
        """Seconds of a step with even work without network, then also without fixed costs."""
        # Transfers that take no time take no multiprocessors from kernels beside them either.
        alone = [self._costs.busy(part, self._profile, transfers=False) for part in even if self._overlaps]
        free = balanced.change(partial(without_network, alone))
        yield "network", self._seconds(free)
        yield "overhead", self._seconds(free.change(without_overhead))

    def _program(self, parts: Sequence[Part]) -> Program:
        return self._costs.program(parts, self._profile)

    def _uneven(self, parts: Sequence[Part]) -> bool:
        """Whether any GPU has other work at home than the others."""
        homes = (part.tokens for part in parts)
        windows = {self._model.attention_context(layer, np.inf) for layer in range(self._model.layers)}
        return any(
            np.ptp(values_G) > 0
            for home in homes
            for values_G in (
                home.tokens_G,
                home.last_G,
                *(home.keys_G(size, prefill=prefill) for size in windows for prefill in (False, True)),
            )
        )

    def _seconds(self, program: Program) -> float:
        """Length of one step on healthy hardware."""
        if len(program.lanes) == 1:
            return lane_s(program, self._network)
        program = as_one(program, self._network)
        (clock,) = simulate([program], len(program.operations[0].busy_G), Conditions([self._network]))
        return clock.end_s - clock.start_s
