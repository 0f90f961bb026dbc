"""Why a step takes as long as it does: the same steps simulated again, each time without one more cause."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from moesim.analysis.counterfactuals import as_one, with_experts, without_network, without_overhead
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
from moesim.simulation.clock import Links, StepClock
from moesim.simulation.conditions import Conditions
from moesim.simulation.costs import Costs
from moesim.simulation.part import Part
from moesim.simulation.price import Step
from moesim.simulation.program import Program
from moesim.simulation.step import run_step
from moesim.spec.profile import Profile

Seconds = defaultdict[str, float]


class Counterfactuals:
    """Seconds of all steps with less and less in their way; told of each step as it ends.

    Attributes:
        seconds: of all these steps together, ``as run``, without faults (``healthy``), also without experts
            that move (``settled``), also with even ``homes``, ``experts`` and ``traffic``, also without
            ``network``, also without ``overhead``; and with even traffic after the best possible ``router``.
        drawn: for each profile of ``draws``, the same from ``settled`` on, without ``router``.
    """

    def __init__(self, deployment: Deployment, draws: Sequence[Profile] = ()) -> None:
        scenario, placement = deployment.scenario, deployment.placement
        self._model = scenario.model
        ranks, record = scenario.parallelism.ep, scenario.dispatch.record
        self._pairs = Pairs(ranks, deployment.pricing.gpus_per_node, record.relayed)
        # A router may choose any expert, so what counts is which kinds of slots there are.
        kind_LS = self._model.kind_LS(placement.slot_expert_LS)
        kind_LS = np.zeros(placement.slot_expert_LS.shape, np.int16) if kind_LS is None else kind_LS
        kind_LS = np.where(placement.slot_expert_LS >= 0, kind_LS, np.int16(-1))
        kinds_C = np.arange(len(self._model.kinds))
        self._slots_LC = (kind_LS[:, :, None] == kinds_C).sum(axis=1) / ranks
        self._asked = _Priced(deployment, scenario.profile)
        self._drawn = [_Priced(deployment, profile) for profile in draws]
        self.seconds = Seconds(float)
        self.drawn = [Seconds(float) for _ in draws]

    def observe(self, step: Step, clock: StepClock) -> None:
        """Add a step that has run."""
        asked, seconds = self._asked, self.seconds
        as_run_s = clock.end_s - clock.start_s
        seconds["as run"] += as_run_s
        healthy_s = as_run_s if step.program is step.healthy else asked.seconds(step.healthy)
        settled_s = healthy_s if step.settled is step.healthy else asked.seconds(step.settled)
        seconds["healthy"] += healthy_s
        seconds["settled"] += settled_s
        homes, spread, even = self._evened(step.parts)
        seconds["homes"] += (homes_s := settled_s if homes is None else asked.seconds(asked.program(homes)))
        balanced = asked.add(seconds, spread, even)
        by_routers = (
            [even_routing(part, self._slots_LC) for part in even],
            [fewest_slots(part) for part in even],
        )
        seconds["router"] += asked.best_s(balanced, by_routers)
        for priced, drawn in zip(self._drawn, self.drawn, strict=True):
            drawn["settled"] += (settled_s := priced.seconds(priced.program(step.parts)))
            homes_s = settled_s if homes is None else priced.seconds(priced.program(homes))
            drawn["homes"] += homes_s
            priced.add(drawn, spread, even)

    def terms(self, step_s: float) -> Attribution:
        """Seconds of a step by cause; but for the parts of imbalance they sum to ``step_s``.

        A term may be negative, and is shown as it is.

        Args:
            step_s: T0, mean seconds of a step: also of steps that this has not been told of.
        """
        at = self._per_step(self.seconds, step_s)
        return _attribution(at, hardware_s=step_s - at["healthy"], migration_s=at["healthy"] - at["settled"])

    def drawn_terms(self, step_s: float) -> list[Attribution]:
        """The same with each of the profiles that were drawn.

        Faults and experts that move are not drawn anew: they cost the same part of a step as asked.
        """
        asked, found = self.terms(step_s), []
        for seconds in self.drawn:
            at = self._per_step(seconds, step_s)
            longer = seconds["settled"] / self.seconds["settled"]
            disturbed = {"hardware_s": asked.hardware_s, "migration_s": asked.migration_s}
            found.append(_attribution(at, **{name: cost_s * longer for name, cost_s in disturbed.items()}))
        return found

    def ceilings(self, step_s: float) -> Ceilings:
        """The most that placements and routers can win of a step of so many seconds."""
        at = self._per_step(self.seconds, step_s)
        return Ceilings(placements_s=at["settled"] - at["traffic"], routers_s=at["settled"] - at["router"])

    def _per_step(self, seconds: Seconds, step_s: float) -> Seconds:
        """Of a mean step, as these steps are to it."""
        return Seconds(
            float, {name: each * (step_s / self.seconds["as run"]) for name, each in seconds.items()}
        )

    def _evened(
        self, parts: Sequence[Part]
    ) -> tuple[Sequence[Part] | None, Sequence[EvenExperts], Sequence[EvenExperts]]:
        """The parts with even homes, also with even experts, also with even traffic.

        The first is None where every GPU has the same at home anyway.
        """
        homes = [even_homes(part, self._pairs) for part in parts]
        spread = [even_experts(part, len(self._model.kinds)) for part in homes]
        even = [even_traffic(part, self._pairs) for part in spread]
        return homes if self._uneven(parts) else None, spread, even

    def _uneven(self, parts: Sequence[Part]) -> bool:
        """Whether any GPU has other work at home than the others."""
        homes = [part.tokens for part in parts]
        values = [each for home in homes for each in (home.tokens_G, home.last_G)]
        values += [
            home.keys_G(counted, prefill=prefill)
            for home in homes
            for attention in self._model.attention_layers
            for counted in (attention.attended, attention.scanned)
            for prefill in (False, True)
        ]
        return any(np.ptp(values_G) > 0 for values_G in values)


class _Priced:
    """Seconds of steps at the prices of one profile, on healthy hardware."""

    def __init__(self, deployment: Deployment, profile: Profile) -> None:
        self._profile, self._costs = profile, Costs(deployment)
        self._network = deployment.pricing.network(profile)
        self._overlaps = bool(deployment.scenario.overlap)

    def program(self, parts: Sequence[Part]) -> Program:
        """What the parts of a step run."""
        return self._costs.program(parts, self._profile)

    def seconds(self, program: Program) -> float:
        """Length of one step."""
        links = Links(Conditions([self._network]), program.table.busy_OG.shape[1])
        return run_step(links, program, 0.0).end_s

    def add(self, seconds: Seconds, spread: Sequence[EvenExperts], even: Sequence[EvenExperts]) -> Program:
        """Add a step with even experts, then traffic, then without network, then without fixed costs.

        Returns:
            the step with even traffic.
        """
        seconds["experts"] += self.seconds(self.program(spread))
        balanced = as_one(self.program(even), self._network)
        seconds["traffic"] += self.seconds(balanced)
        # Transfers that take no time take no multiprocessors from kernels beside them either.
        alone = [self._costs.busy(part, self._profile, transfers=False) for part in even if self._overlaps]
        free = without_network(balanced, alone)
        seconds["network"] += self.seconds(free)
        seconds["overhead"] += self.seconds(without_overhead(free))
        return balanced

    def best_s(self, balanced: Program, routed: Sequence[Sequence[EvenExperts]]) -> float:
        """Seconds of a step with even work, or with the experts that another router chooses: the fewest."""
        programs = [balanced]
        for parts in routed:
            busy = [self._costs.busy(part, self._profile) for part in parts]
            programs.append(with_experts(balanced, busy))
        return min(self.seconds(program) for program in programs)


def _attribution(at: Seconds, **disturbed: float) -> Attribution:
    """From seconds of a mean step."""
    return Attribution(
        **disturbed,
        imbalance_s=at["settled"] - at["traffic"],
        homes_s=at["settled"] - at["homes"],
        experts_s=at["homes"] - at["experts"],
        traffic_s=at["experts"] - at["traffic"],
        network_s=at["traffic"] - at["network"],
        overhead_s=at["network"] - at["overhead"],
        ideal_s=at["overhead"],
    )
