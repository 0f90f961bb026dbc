"""A run: batches from the trace, through policy, placement and counting, onto the simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.deployment.deployment import Deployment
from moesim.errors import MoesimError
from moesim.hardware.health import epochs
from moesim.simulation.clock import StepClock
from moesim.simulation.conditions import Conditions
from moesim.simulation.loop import Replay, Resolution, run_alone
from moesim.simulation.price import Pricer, Step, replayed
from moesim.simulation.rebalancing import Move
from moesim.simulation.recording import Recording
from moesim.simulation.tally import Tally
from moesim.spec.question import plural
from moesim.spec.scenario import Scenario
from traces.timeline import Timeline, WorkTable

_MOST_S = 1e9

Observer = Callable[[Step, StepClock], None]
"""Told of each step as it ends."""


@dataclass(frozen=True)
class Run:
    """What a simulated run leaves behind.

    Attributes:
        timeline: of the steps that are kept whole (``workload.timeline_every``).
        slots: of these, tokens of each slot; ``work()`` has the copies too.
        steps: how many ran.
        tokens: of all ranks and steps together.
        tallies: what became of the router's choice after each policy.
        active_slots, rows: slots with tokens, and their rows as experts are given them, of all layers.
        cross_node_bytes, in_node_bytes: of tokens over NICs and inside nodes, all steps together.
        moves: the rebalances, in order.
    """

    deployment: Deployment
    timeline: Timeline
    slots: WorkTable
    recording: Recording
    steps: int
    tokens: int
    tallies: Sequence[Tally]
    active_slots: int
    rows: int
    cross_node_bytes: float
    in_node_bytes: float
    moves: Sequence[Move]

    @property
    def tokens_per_step(self) -> float:
        """Of all ranks together."""
        return self.tokens / self.steps

    def work(self) -> WorkTable:
        """Everything counted, as ``work.parquet`` holds it."""
        everywhere = self.deployment.scenario.dispatch.record.returns == "everywhere"
        return self.recording.work(self.deployment.pricing.copy_bytes(), reduces_to_all=everywhere)


def resolution_of(scenario: Scenario) -> Resolution:
    """Of a run that has the links to itself: ``step`` unless ``event`` is asked for."""
    return "event" if scenario.resolution == "event" else "step"


def run(deployment: Deployment, *observers: Observer, read: Callable[[Timeline], None] | None = None) -> Run:
    """Simulate a deployment.

    Args:
        observers: told of the steps that are kept whole.
        read: told of all steps, some at a time.

    Raises:
        MoesimError: it takes more than thirty years, which no timeline holds in nanoseconds.
    """
    scenario, pricing = deployment.scenario, deployment.pricing
    changes_s, states = epochs(scenario.faults, scenario.parallelism.ep)
    conditions = Conditions([pricing.network(scenario.profile, state) for state in states], changes_s)
    every, align = scenario.workload.kept_every, pricing.links(scenario.profile).align
    pricer = Pricer(deployment)
    recording = Recording(scenario.name, scenario.model.moe_layers, every, read)
    crossed, moved, steps, tokens, active, rows = 0.0, 0.0, 0, 0, 0, 0

    def record(step: Step, clock: StepClock) -> None:
        nonlocal crossed, moved, steps, tokens, active, rows
        if not clock.end_s < _MOST_S:
            rule = f"takes more than thirty years for {plural(step.number + 1, 'step')}: a rate is too low"
            raise MoesimError(rule, got=f"{clock.end_s:.3g} s")
        settled = step.settled.table
        # Bytes of spans are those of tokens: experts that move beside a collective are left out.
        stall = step.program.operations[len(settled) :]
        recording.add_step(step.number, clock, [*settled, *stall] if stall else settled)
        recording.add_work(step.number, [part.work for part in step.parts])
        steps += 1
        for part in step.parts:
            tokens += int(part.tokens.tokens_G.sum())
            active += int(np.count_nonzero(part.work.tokens_LS))
            rows += int((-(-part.work.tokens_LS // align)).sum(dtype=np.int64)) * align
        crossed += settled.transfers.cross_node_bytes(pricing.gpus_per_node)
        moved += float(settled.transfers.received_G.sum())
        for observe in observers if step.number % every == 0 else ():
            observe(step, clock)

    source, ranks = Replay(replayed(deployment)), scenario.parallelism.ep
    run_alone(source, pricer.price, record, ranks, conditions, resolution_of(scenario))
    recording.end()
    return Run(
        deployment,
        recording.timeline(),
        recording.slots(),
        recording,
        steps,
        tokens,
        pricer.counter.tallies,
        active,
        rows,
        crossed,
        moved - crossed,
        pricer.rebalancing.moves,
    )
