"""A run: batches from the trace, through policy, placement and counting, onto the simulated clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moesim.deployment.deployment import Deployment
from moesim.hardware.health import epochs
from moesim.hardware.network import Fabric
from moesim.simulation.busy import Busy
from moesim.simulation.conditions import Conditions
from moesim.simulation.event import simulate
from moesim.simulation.operations import (
    Operation,
    even,
    even_seconds,
    level,
    without_network,
    without_overhead,
)
from moesim.simulation.program import Program
from moesim.simulation.rebalancing import Move
from moesim.simulation.recording import Recording
from moesim.simulation.steps import Steps
from moesim.simulation.tally import Tally
from moesim.spec.profile import DATA_SHEET
from traces.timeline import Timeline, WorkTable


@dataclass
class Totals:
    """Seconds of all steps with less and less in their way, for the attribution.

    Attributes:
        healthy: without faults.
        data_parallel: what of that unequal tokens and contexts of the GPUs cost.
        balanced: also with every GPU given the mean over GPUs of each phase's duration.
        no_network: also with transfers that take no time, and no multiprocessors from kernels beside them.
        no_overhead: also without launches and fixed costs.
        migration: what of ``healthy`` moving experts cost.
    """

    healthy: float = 0.0
    data_parallel: float = 0.0
    balanced: float = 0.0
    no_network: float = 0.0
    no_overhead: float = 0.0
    migration: float = 0.0


@dataclass(frozen=True)
class Run:
    """What a simulated run leaves behind.

    Attributes:
        slots: tokens of each slot; ``work()`` has the copies too.
        tokens: of all ranks and steps together.
        tallies: what became of the router's choice after each policy.
        bounds_s: per phase, seconds of a step at data-sheet peak, averaged over GPUs.
        cross_node_bytes: bytes of tokens over NICs, all steps together.
        moves: the rebalances, in order.
    """

    deployment: Deployment
    timeline: Timeline
    slots: WorkTable
    recording: Recording
    tokens: int
    tallies: Sequence[Tally]
    totals: Totals
    bounds_s: dict[str, float]
    cross_node_bytes: float
    moves: Sequence[Move]

    def work(self) -> WorkTable:
        """Everything counted, as ``work.parquet`` holds it."""
        everywhere = self.deployment.scenario.dispatch.record.returns == "everywhere"
        return self.recording.work(self.deployment.copy_bytes(), reduces_to_all=everywhere)


def run(deployment: Deployment) -> Run:
    """Simulate a deployment at resolution ``event``."""
    scenario = deployment.scenario
    ranks, profile = scenario.parallelism.ep, scenario.profile
    changes_s, states = epochs(scenario.faults, ranks)
    conditions = Conditions([deployment.network(profile, state) for state in states], changes_s)
    healthy = Conditions([deployment.network(profile)]) if scenario.faults else conditions
    links = deployment.fabric(DATA_SHEET)
    # Where every GPU has the same at home, levelling would change nothing. In prefill ranks stand at
    # different positions of their requests, however many tokens each has.
    workload = scenario.workload
    uneven = workload.phase != "decode" or any(each.each is None for each in workload.amounts.values())
    overlaps = bool(scenario.overlap)
    steps = Steps(deployment)
    recording = Recording(scenario.name, scenario.model.moe_layers)
    totals = Totals()
    bounds_s: dict[str, float] = {}
    crossed, tokens = 0.0, 0
    for step, clock in enumerate(simulate(steps, ranks, conditions)):
        assert steps.made is not None  # the engine has just run this step
        made = steps.made
        # Bytes of spans are those of tokens: experts that move beside a collective are left out.
        stalls = made.program.operations[len(made.settled.operations) :]
        recording.add_step(step, clock, [*made.settled.operations, *stalls])
        recording.add_work([part.work for part in made.parts])
        disturbed = made.program is not made.healthy
        whole_s = _seconds(made.healthy, ranks, healthy) if disturbed else clock.end_s - clock.start_s
        totals.healthy += whole_s
        if made.settled is not made.healthy:
            totals.migration += whole_s - _seconds(made.settled, ranks, healthy)
        if uneven:
            totals.data_parallel += whole_s - _seconds(made.healthy.change(level), ranks, healthy)
        alone = [steps.busy(part, profile, transfers=False) for part in made.parts] if overlaps else []
        _add_even(totals, made.healthy, healthy, alone)
        ideal = [steps.busy(part, DATA_SHEET) for part in made.parts]
        # Experts that move are no part of a step's work.
        _add_bounds(bounds_s, made.settled.operations, ideal, links)
        tokens += sum(len(part.tokens.row_T) for part in made.parts)
        crossed += sum(
            operation.transfer.cross_node_bytes(links.gpus_per_node)
            for operation in made.settled.operations
            if operation.transfer is not None
        )
    per_step = {phase: seconds / scenario.workload.steps for phase, seconds in bounds_s.items()}
    return Run(
        deployment,
        recording.timeline(),
        recording.slots(),
        recording,
        tokens,
        steps.tallies,
        totals,
        per_step,
        crossed,
        steps.rebalancing.moves,
    )


def _add_even(totals: Totals, program: Program, healthy: Conditions, alone: Sequence[Busy]) -> None:
    """Add the seconds of an evened step, then without network, then without fixed costs too.

    ``alone``: of each micro-batch, what its kernels take where no transfers run beside them; empty without
    overlap.
    """
    if len(program.lanes) == 1:
        # Equal ranks on one lane never wait: the simulations that follow would only add up.
        kernels_s, transfers_s, fixed_s = even_seconds(program.operations, healthy.network(0.0))
        totals.balanced += kernels_s + transfers_s + fixed_s
        totals.no_network += kernels_s + fixed_s
        totals.no_overhead += kernels_s
        return
    balanced = program.change(lambda operations: even(operations, healthy.network(0.0)))
    undisturbed = program.change(
        lambda operations: [
            replace(operation, busy_G=alone[operation.micro_batch][operation.phase, operation.layer])
            if operation.transfer is None
            else operation
            for operation in operations
        ]
    )
    no_network = undisturbed.change(lambda operations: even(operations, healthy.network(0.0)))
    no_network = no_network.change(without_network)
    totals.balanced += _seconds(balanced, 1, healthy)
    totals.no_network += _seconds(no_network, 1, healthy)
    totals.no_overhead += _seconds(no_network.change(without_overhead), 1, healthy)


def _seconds(program: Program, ranks: int, conditions: Conditions) -> float:
    """Length of one step; one rank stands for all where all are equal."""
    (clock,) = simulate([program], ranks, conditions)
    return clock.end_s - clock.start_s


def _add_bounds(
    bounds_s: dict[str, float], operations: Sequence[Operation], ideal: Sequence[Busy], links: Fabric
) -> None:
    """Add each phase's seconds at the data sheet's rates, averaged over GPUs.

    Those of a collective are its bytes over all ports of a class, the slower class.
    """
    for operation in operations:
        transfer = operation.transfer
        if transfer is None:
            seconds = float(ideal[operation.micro_batch][operation.phase, operation.layer].mean())
        else:
            bytes_GG = transfer.first_GG + transfer.second_GG
            across = transfer.cross_node_bytes(links.gpus_per_node)
            inside = float(bytes_GG.sum()) - across
            seconds = max(inside / links.nvlink_bandwidth, across / links.nic_bandwidth) / len(bytes_GG)
        bounds_s[operation.phase] = bounds_s.get(operation.phase, 0.0) + seconds
