"""A run: batches from the trace, through policy, placement and counting, onto the simulated clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.network import NETWORKS, Fabric
from moesim.hardware.profile import DATA_SHEET, Profile
from moesim.routing.policy import Batch, Outcome
from moesim.routing.replicas import REPLICA_CHOICES
from moesim.simulation.batch import decode_rows, gather_ids, gather_weights, home_offsets
from moesim.simulation.deployment import Deployment
from moesim.simulation.engine import simulate
from moesim.simulation.operations import (
    NetworkModel,
    Operation,
    even,
    step_operations,
    without_network,
    without_overhead,
)
from moesim.simulation.recording import Recording
from moesim.simulation.work import Work, count_work
from traces.timeline import Timeline, WorkTable


@dataclass
class Tally:
    """What the policy did, summed over layers and steps; assignments, and gate mass where it is known."""

    wished: int = 0
    kept: int = 0
    rerouted: int = 0
    dropped: int = 0
    added: int = 0
    gate_mass: float = 0.0
    gate_mass_lost: float = 0.0
    weighted: bool = True
    # Sums of capacity·E over what has a capacity, and of the assignments there.
    room: int = 0
    limited: int = 0

    def add(self, outcome: Outcome, experts: int) -> None:
        """Count one layer of one step."""
        self.wished += outcome.wished
        self.kept += outcome.kept
        self.rerouted += outcome.rerouted
        self.dropped += outcome.dropped
        self.added += outcome.added
        if outcome.gate_mass is None or outcome.gate_mass_lost is None:
            self.weighted = False
        else:
            self.gate_mass += outcome.gate_mass
            self.gate_mass_lost += outcome.gate_mass_lost
        if outcome.capacity is not None:
            self.room += outcome.capacity * experts
            self.limited += outcome.wished


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
        bounds_s: per phase, seconds of a step at data-sheet peak, averaged over GPUs.
        cross_node_bytes: bytes over NICs, all steps together.
    """

    deployment: Deployment
    timeline: Timeline
    slots: WorkTable
    recording: Recording
    tally: Tally
    even: EvenSeconds
    bounds_s: dict[str, float]
    cross_node_bytes: float

    def work(self) -> WorkTable:
        """Everything counted, as ``work.parquet`` holds it."""
        return self.recording.work(self.deployment.copy_bytes())


@dataclass
class _Steps:
    """Makes the operations of each step when the engine asks for them, and remembers what they were."""

    deployment: Deployment
    tally: Tally = field(default_factory=Tally)
    made: tuple[Work, list[Operation]] | None = None

    def __iter__(self) -> Iterator[list[Operation]]:
        deployment, scenario = self.deployment, self.deployment.scenario
        replayed = deployment.replayed
        offsets_G = home_offsets(deployment.tokens_G)
        count_LE, slots_LER = deployment.placement.replica_table()
        choose = REPLICA_CHOICES[scenario.replicas]
        # One stream of randomness for each purpose: a later purpose will not shift this one.
        (batch_seed,) = np.random.SeedSequence(scenario.seed).spawn(1)
        rows = decode_rows(
            replayed.request_offsets,
            replayed.position_T,
            int(offsets_G[-1]),
            scenario.workload.steps,
            np.random.default_rng(batch_seed),
        )
        for row_B in rows:
            ids_LTK = self._route(row_B, offsets_G)
            slot_LTK = choose(ids_LTK, offsets_G, count_LE, slots_LER)
            work = count_work(
                slot_LTK,
                offsets_G,
                deployment.placement.slot_gpu_S,
                deployment.fabric(scenario.profile).gpus_per_node,
                scenario.dispatch.mode,
            )
            operations = self.operations(work, scenario.profile)
            self.made = work, operations
            yield operations

    def operations(self, work: Work, profile: Profile) -> list[Operation]:
        """What this work costs with this profile."""
        deployment = self.deployment
        return step_operations(
            deployment.kernels(profile),
            deployment.fabric(profile),
            work,
            deployment.placement.slot_gpu_S,
            deployment.tokens_G,
            deployment.scenario.workload.context,
            deployment.copy_bytes(),
        )

    def _route(self, row_B: NDArray[np.int64], offsets_G: NDArray[np.int64]) -> NDArray[np.int16]:
        """Experts of the batch after the policy, and what it changed into the tally."""
        trace, policy = self.deployment.replayed, self.deployment.policy
        experts = trace.meta.experts
        ids_LTK = gather_ids(trace.ids_TLK, row_B)
        weights_LTK = None if trace.weights_TLK is None else gather_weights(trace.weights_TLK, row_B)
        for layer, ids_TK in enumerate(ids_LTK):
            weights_TK = None if weights_LTK is None else weights_LTK[layer]
            outcome = policy.apply(Batch(ids_TK, weights_TK, offsets_G, experts))
            self.tally.add(outcome, experts)
            ids_LTK[layer] = outcome.ids_TK
        return ids_LTK


def run(deployment: Deployment) -> Run:
    """Simulate a deployment at resolution ``event``."""
    scenario = deployment.scenario
    network = NETWORKS["ports" if scenario.network == "auto" else scenario.network]
    fabric = deployment.fabric(scenario.profile)
    steps = _Steps(deployment)
    recording = Recording(scenario.name, scenario.model.moe_layers)
    evened = EvenSeconds()
    bounds_s: dict[str, float] = {}
    crossed = 0.0
    for step, clock in enumerate(simulate(steps, scenario.parallelism.ep, network, fabric)):
        assert steps.made is not None  # the engine has just run these operations
        work, operations = steps.made
        recording.add_step(step, clock, operations)
        recording.add_work(work)
        _add_even(evened, operations, network, fabric)
        _add_bounds(bounds_s, steps.operations(work, DATA_SHEET), deployment.fabric(DATA_SHEET))
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
        steps.tally,
        evened,
        per_step,
        crossed,
    )


def _add_even(
    total: EvenSeconds, operations: Sequence[Operation], network: NetworkModel, fabric: Fabric
) -> None:
    balanced = even(operations, network, fabric)
    no_network = without_network(balanced)
    total.balanced += _seconds(balanced, network, fabric)
    total.no_network += _seconds(no_network, network, fabric)
    total.no_overhead += _seconds(without_overhead(no_network), network, fabric)


def _seconds(operations: Sequence[Operation], network: NetworkModel, fabric: Fabric) -> float:
    """Length of a step whose GPUs are all equal, simulated with one of them."""
    (clock,) = simulate([operations], 1, network, fabric)
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
