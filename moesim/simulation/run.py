"""A run: batches from the trace, through policy, placement and counting, onto the simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        slots: tokens of each slot; ``work()`` has the copies too.
        tokens: of all ranks and steps together.
        tallies: what became of the router's choice after each policy.
        cross_node_bytes, in_node_bytes: of tokens over NICs and inside nodes, all steps together.
        moves: the rebalances, in order.
    """

    deployment: Deployment
    timeline: Timeline
    slots: WorkTable
    recording: Recording
    tokens: int
    tallies: Sequence[Tally]
    cross_node_bytes: float
    in_node_bytes: float
    moves: Sequence[Move]

    def work(self) -> WorkTable:
        """Everything counted, as ``work.parquet`` holds it."""
        everywhere = self.deployment.scenario.dispatch.record.returns == "everywhere"
        return self.recording.work(self.deployment.pricing.copy_bytes(), reduces_to_all=everywhere)


def resolution_of(scenario: Scenario) -> Resolution:
    """Of a run that has the links to itself: ``step`` unless ``event`` is asked for."""
    return "event" if scenario.resolution == "event" else "step"


def run(deployment: Deployment, *observers: Observer) -> Run:
    """Simulate a deployment.

    Raises:
        MoesimError: it takes more than thirty years, which no timeline holds in nanoseconds.
    """
    scenario, pricing = deployment.scenario, deployment.pricing
    changes_s, states = epochs(scenario.faults, scenario.parallelism.ep)
    conditions = Conditions([pricing.network(scenario.profile, state) for state in states], changes_s)
    pricer, recording = Pricer(deployment), Recording(scenario.name, scenario.model.moe_layers)
    crossed, moved, tokens = 0.0, 0.0, 0

    def record(step: Step, clock: StepClock) -> None:
        nonlocal crossed, moved, tokens
        if not clock.end_s < _MOST_S:
            rule = f"takes more than thirty years for {plural(step.number + 1, 'step')}: a rate is too low"
            raise MoesimError(rule, got=f"{clock.end_s:.3g} s")
        settled = step.settled.operations
        # Bytes of spans are those of tokens: experts that move beside a collective are left out.
        recording.add_step(step.number, clock, [*settled, *step.program.operations[len(settled) :]])
        recording.add_work([part.work for part in step.parts])
        tokens += sum(int(part.tokens.tokens_G.sum()) for part in step.parts)
        transfers = [operation.transfer for operation in settled if operation.transfer is not None]
        crossed += sum(each.cross_node_bytes(pricing.gpus_per_node) for each in transfers)
        moved += sum(float(each.received_G.sum()) for each in transfers)
        for observe in observers:
            observe(step, clock)

    source, ranks = Replay(replayed(deployment)), scenario.parallelism.ep
    run_alone(source, pricer.price, record, ranks, conditions, resolution_of(scenario))
    return Run(
        deployment,
        recording.timeline(),
        recording.slots(),
        recording,
        tokens,
        pricer.counter.tallies,
        crossed,
        moved - crossed,
        pricer.rebalancing.moves,
    )
