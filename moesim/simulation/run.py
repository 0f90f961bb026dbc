"""A run: batches from the trace, through policy, placement and counting, onto the simulated clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.hardware.network import Fabric, Network
from moesim.hardware.profile import DATA_SHEET
from moesim.simulation.deployment import Deployment
from moesim.simulation.engine import simulate
from moesim.simulation.operations import (
    Operation,
    even,
    without_network,
    without_overhead,
)
from moesim.simulation.recording import Recording
from moesim.simulation.steps import Steps
from moesim.simulation.tally import Tally
from traces.timeline import Timeline, WorkTable


@dataclass
class EvenSeconds:
    """Total seconds of the run's steps with less and less in their way, for the attribution.

    Attributes:
        balanced: every GPU given the mean over GPUs of each phase's duration.
        no_network: also with transfers that take no time.
        no_overhead: also without launches and fixed costs.
    """

    balanced: float = 0.0
    no_network: float = 0.0
    no_overhead: float = 0.0


@dataclass(frozen=True)
class Run:
    """What a simulated run leaves behind.

    Attributes:
        slots: tokens of each slot; ``work()`` has the copies too.
        tokens: of all ranks and steps together.
        bounds_s: per phase, seconds of a step at data-sheet peak, averaged over GPUs.
        cross_node_bytes: bytes over NICs, all steps together.
    """

    deployment: Deployment
    timeline: Timeline
    slots: WorkTable
    recording: Recording
    tokens: int
    tally: Tally
    even: EvenSeconds
    bounds_s: dict[str, float]
    cross_node_bytes: float

    def work(self) -> WorkTable:
        """Everything counted, as ``work.parquet`` holds it."""
        return self.recording.work(self.deployment.copy_bytes())


def run(deployment: Deployment) -> Run:
    """Simulate a deployment at resolution ``event``."""
    scenario = deployment.scenario
    network = deployment.network(scenario.profile)
    fabric = deployment.fabric(scenario.profile)
    steps = Steps(deployment)
    recording = Recording(scenario.name, scenario.model.moe_layers)
    evened = EvenSeconds()
    bounds_s: dict[str, float] = {}
    crossed, tokens = 0.0, 0
    for step, clock in enumerate(simulate(steps, scenario.parallelism.ep, network)):
        assert steps.made is not None  # the engine has just run these operations
        made = steps.made
        operations = made.operations
        tokens += len(made.tokens.row_T)
        recording.add_step(step, clock, operations)
        recording.add_work(made.work)
        _add_even(evened, operations, network)
        _add_bounds(
            bounds_s, steps.operations(made.tokens, made.work, DATA_SHEET), deployment.fabric(DATA_SHEET)
        )
        crossed += sum(
            operation.transfer.cross_node_bytes(fabric.gpus_per_node)
            for operation in operations
            if operation.transfer is not None
        )
    per_step = {phase: seconds / scenario.workload.steps for phase, seconds in bounds_s.items()}
    return Run(
        deployment,
        recording.timeline(),
        recording.slots(),
        recording,
        tokens,
        steps.tally,
        evened,
        per_step,
        crossed,
    )


def _add_even(total: EvenSeconds, operations: Sequence[Operation], network: Network) -> None:
    balanced = even(operations, network)
    no_network = without_network(balanced)
    total.balanced += _seconds(balanced, network)
    total.no_network += _seconds(no_network, network)
    total.no_overhead += _seconds(without_overhead(no_network), network)


def _seconds(operations: Sequence[Operation], network: Network) -> float:
    """Length of a step whose GPUs are all equal, simulated with one of them."""
    (clock,) = simulate([operations], 1, network)
    return clock.end_s - clock.start_s


def _add_bounds(bounds_s: dict[str, float], operations: Sequence[Operation], fabric: Fabric) -> None:
    """Add each phase's seconds, averaged over GPUs; those of a collective are its bytes over all ports."""
    for operation in operations:
        seconds = float(operation.busy_G.mean())
        if operation.transfer is not None:
            bytes_GG = operation.transfer.first_GG + operation.transfer.second_GG
            across = operation.transfer.cross_node_bytes(fabric.gpus_per_node)
            inside = float(bytes_GG.sum()) - across
            per_gpu = max(inside / fabric.nvlink_bandwidth, across / fabric.nic_bandwidth)
            seconds += per_gpu / len(bytes_GG)
        bounds_s[operation.phase] = bounds_s.get(operation.phase, 0.0) + seconds
