"""From the tokens of a step to what runs: counted, priced, on the hardware as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moesim.deployment.batch import Seeds, StepTokens, batches
from moesim.deployment.deployment import Deployment
from moesim.hardware.health import epochs, jitter_G
from moesim.simulation.costs import Costs
from moesim.simulation.counting import Counter
from moesim.simulation.jitter import jittered
from moesim.simulation.part import Part
from moesim.simulation.program import Program
from moesim.simulation.rebalancing import Rebalancing


@dataclass(frozen=True)
class Step:
    """One step before it runs.

    Attributes:
        number: of the steps before it.
        program: as the hardware is.
        healthy: as it would be without faults and jitter; ``program`` itself where there are none.
        settled: also without experts that move; ``healthy`` itself where none do.
    """

    number: int
    parts: list[Part]
    program: Program
    healthy: Program
    settled: Program


class Pricer:
    """Prices the batches of a run, in order: routing and rebalancing remember what came before."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._costs = Costs(deployment)
        self._seeds = Seeds.of(deployment.scenario.seed)
        self._priced = 0
        self.rebalancing = Rebalancing(deployment)
        self.counter = Counter(deployment, self.rebalancing.watch)

    def price(self, tokens: StepTokens) -> Step:
        """The next step."""
        scenario, seeds = self._deployment.scenario, self._seeds
        ranks, faults, jitter = scenario.parallelism.ep, scenario.faults, scenario.profile.jitter
        number = self._priced
        self._priced += 1
        self.rebalancing.begin(number)
        placement = self.rebalancing.placement
        halves = tokens.halves() if "two_batch" in scenario.overlap else (tokens,)
        kind_LS = scenario.model.kind_LS(placement.slot_expert_LS)
        parts = [Part(each, self.counter.work(each, placement), kind_LS) for each in halves]
        settled = faulty = self._costs.program(parts, scenario.profile)
        if faults:
            drawn_OG = seeds.jitter.standard_normal((len(settled.operations), ranks))
            _, states = epochs(faults, ranks)
            factor_OG = np.exp(jitter_G(faults, ranks) * drawn_OG)
            faulty = self._costs.program_on(settled, parts, states, factor_OG)
        if jitter:
            faulty = faulty.change(lambda each: jittered(each, jitter, ranks, seeds.durations))
        traffic = self.rebalancing.traffic(settled)
        healthy = traffic.join(settled)
        program = healthy if faulty is settled else traffic.join(faulty)
        return Step(number, parts, program, healthy, settled)


def replayed(deployment: Deployment) -> Iterator[StepTokens]:
    """The batches of a deployment's workload, drawn from the trace that it replays."""
    scenario = deployment.scenario
    return batches(deployment.replayed, scenario.workload, scenario.parallelism.ep, scenario.seed)


def priced(deployment: Deployment) -> list[Step]:
    """All steps of a deployment before any runs: for whoever needs their work or their programs alone."""
    price = Pricer(deployment).price
    return [price(batch) for batch in replayed(deployment)]
