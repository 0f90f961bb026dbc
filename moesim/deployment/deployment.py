"""A scenario with its data in hand: the trace that is replayed and the placement that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.deployment.batch import batches
from moesim.deployment.memory import Memory, check_memory, memory
from moesim.deployment.policies import policies_for
from moesim.deployment.reading import check_shape, load_trace
from moesim.errors import SpecError, TraceError
from moesim.hardware.groups import group_share
from moesim.hardware.health import Health
from moesim.hardware.kernels import Kernels
from moesim.hardware.network import Fabric, Network
from moesim.hardware.networks import NETWORKS, network_name
from moesim.hardware.policy_time import launching, total
from moesim.hardware.transfer import Bytes
from moesim.routing.candidates import are_logits, are_of_sigmoids, sigmoids
from moesim.routing.none import NoPolicy
from moesim.routing.policy import Cost, Need, Policy
from moesim.routing.replicas import AGREED
from moesim.spec.profile import Links, Profile
from moesim.spec.scenario import Scenario
from placement.files.reading import load_placement
from placement.files.target import Target
from placement.problem.placement import Placement
from placement.solvers.solvers import solve
from traces.base.memory import require_memory
from traces.routing import RoutingTrace
from traces.statistics import expert_loads

# A row of the timeline: four int32, two int8, five columns of 8 bytes.
_SPAN_BYTES = 58

# Most tokens that a solver is shown one by one.
_SAMPLE = 4096


@dataclass(frozen=True)
class Deployment:
    """All that a run needs, checked against each other.

    Attributes:
        trace: the whole trace; ``replayed`` is the part of it that the run draws its batches from.
        memory: bytes on each GPU.
    """

    scenario: Scenario
    trace: RoutingTrace
    replayed: RoutingTrace
    placement: Placement
    policies: tuple[Policy, ...]
    memory: Memory

    def kernels(self, profile: Profile, health: Health | None = None) -> Kernels:
        """The kernel model with this profile, on healthy GPUs unless told otherwise."""
        scenario = self.scenario
        return Kernels(
            scenario.model,
            scenario.cluster.gpu,
            launching(profile, self.policy_cost),
            scenario.parallelism.tp,
            self.links(profile),
            1.0 if health is None else health.clock_G,
            self.group_share,
        )

    def fabric(self, profile: Profile, health: Health | None = None) -> Fabric:
        """The links as transfer kernels with this profile reach them."""
        cluster, ep = self.scenario.cluster, self.scenario.parallelism.ep
        nvlink, nic = cluster.gpu.nvlink, cluster.nic
        links = self.links(profile)
        return Fabric(
            min(cluster.gpus_per_node, ep),
            nvlink.bandwidth * links.nvlink,
            nic.bandwidth * nic.efficiency * links.nic,
            nvlink.latency,
            nic.latency,
            None if health is None else health.nvlink_G,
            None if health is None else health.nic_G,
        )

    def links(self, profile: Profile) -> Links:
        """What this profile's transfer kernels reach of them."""
        nodes = -(-self.scenario.parallelism.ep // self.scenario.cluster.gpus_per_node)
        return profile.links(self.scenario.dispatch.mode, nodes)

    def network(self, profile: Profile, health: Health | None = None) -> Network:
        """The model that ends collectives, on the links as this profile has them."""
        build = NETWORKS[self.network_name]
        return build(self.scenario.cluster, self.fabric(profile, health), self.scenario.parallelism.ep)

    @cached_property
    def group_share(self) -> float:
        """Part of its NVLink bandwidth that a GPU reaches inside its attention group."""
        cluster, parallelism = self.scenario.cluster, self.scenario.parallelism
        return group_share(cluster, min(cluster.gpus_per_node, parallelism.ep), parallelism.tp)

    @property
    def network_name(self) -> str:
        """The network model; ``auto`` is resolved."""
        return network_name(self.scenario.network, self.scenario.cluster, self.scenario.parallelism.ep)

    @property
    def needs(self) -> frozenset[Need]:
        """What policies and dispatch look at: gate weights wherever assignments may be lost."""
        needs = frozenset[Need]().union(*(policy.needs for policy in self.policies))
        idle = all(isinstance(policy, NoPolicy) for policy in self.policies)
        if idle and self.scenario.dispatch.record.returns != "anchor":
            return needs
        return needs | {"weights"}

    @cached_property
    def policy_cost(self) -> Cost:
        """What policies do in every layer, and the choice of replicas where ranks must agree on it."""
        agreed = Cost(exchanges=1 if self.scenario.replicas in AGREED else 0)
        return total([agreed, *(policy.cost for policy in self.policies)])

    @cached_property
    def _scored(self) -> Literal["probabilities", "logits", "sigmoids"]:
        """What the trace's scores of candidates are; ``sigmoids`` are those of the logits that it holds."""
        trace = self.trace
        if trace.candidate_scores_TLC is None or not are_logits(trace.candidate_scores_TLC):
            return "probabilities"
        assert trace.candidate_ids_TLC is not None  # scores are those of candidates
        found = are_of_sigmoids(
            trace.ids_TLK, trace.weights_TLK, trace.candidate_ids_TLC, trace.candidate_scores_TLC
        )
        return "sigmoids" if found else "logits"

    @property
    def logits(self) -> bool:
        """Whether what :meth:`scores` gives are logits of a softmax."""
        return self._scored == "logits"

    def scores(self, recorded_TC: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of candidates out of those that the trace has: sigmoids, where the router takes them."""
        return sigmoids(recorded_TC) if self._scored == "sigmoids" else recorded_TC

    def copy_bytes(self) -> Bytes:
        """Bytes of a token on a wire."""
        dispatch = self.scenario.dispatch
        return Bytes.of(self.scenario.model.hidden, dispatch.dtype, dispatch.combine_dtype)


def deploy(scenario: Scenario) -> Deployment:
    """Load what the scenario names and check that it fits together.

    Raises:
        MoesimError: the trace, placement or policy does not fit the model, or the model not the memory.
    """
    check_size(scenario)
    trace = load_trace(scenario)
    check_shape(trace, scenario.model, scenario.trace.file)
    return assemble(scenario, trace, *_place(scenario, trace))


def assemble(
    scenario: Scenario, trace: RoutingTrace, placement: Placement, replayed: RoutingTrace
) -> Deployment:
    """A deployment of what is in hand: a trace and a placement of the model's shape.

    Raises:
        MoesimError: the policy lacks what it needs, or the model does not fit the memory.
    """
    policies = policies_for(scenario, trace, placement, replayed)
    first = next(batches(replayed, scenario.workload, scenario.parallelism.ep, scenario.seed))
    needed = memory(scenario, placement, first)
    check_memory(scenario, needed)
    return Deployment(scenario, trace, replayed, placement, policies, needed)


def check_size(scenario: Scenario) -> None:
    """Refuse a run whose tables would not fit into this machine's memory."""
    steps, G, L = scenario.workload.steps, scenario.parallelism.ep, len(scenario.model.moe_layers)
    slots = scenario.placement.slots or scenario.model.experts.count
    operations = 2 * scenario.model.layers + 4 * L + 1
    # Kept for each step: int32 counts of slots, GPUs and GPU pairs; a span and a wait for each operation.
    pairs = 3 if scenario.dispatch.record.returns == "anchor" else 2
    kept = 4 * L * (slots + G + pairs * G * G) + 2 * _SPAN_BYTES * operations * G
    if scenario.rebalance is not None:  # int64 loads for the solver
        kept += 8 * L * scenario.model.experts.count
    require_memory(
        steps * kept,
        f"simulating {steps} steps on {G} GPUs",
        error=SpecError,
        way_out="lower workload.steps or parallelism.ep",
    )


def _place(scenario: Scenario, trace: RoutingTrace) -> tuple[Placement, RoutingTrace]:
    """The placement, and the requests that it was not fitted on."""
    choice, experts, ep = scenario.placement, scenario.model.experts.count, scenario.parallelism.ep
    layers = scenario.model.moe_layers
    if choice.file is not None:
        return load_placement(choice.file, Target(experts, ep, layers, scenario.model.layers)), trace
    assert choice.solver is not None  # PlacementChoice names one of the two
    requests = len(trace.request_offsets) - 1
    fitted = int(requests * choice.fit_fraction)
    if not 0 < fitted < requests:
        raise TraceError(
            f"has too few requests to fit a placement on {choice.fit_fraction:.0%} and replay the rest",
            file=scenario.trace.file,
            field="placement.fit_fraction",
            got=f"{requests} requests",
        )
    seen = trace.select_requests(0, fitted)
    placement = solve(
        choice.solver,
        expert_loads(seen),
        experts=experts,
        gpus=ep,
        layers=layers,
        slots=choice.slots,
        gpus_per_node=min(scenario.cluster.gpus_per_node, ep),
        groups=scenario.kept_groups,
        # Evenly spread, so that every request has its part.
        sample_TLK=seen.ids_TLK[:: -(-seen.tokens // _SAMPLE)],
        fitted_on=f"requests 0 to {fitted - 1}",
    )
    return placement, trace.select_requests(fitted, requests)
