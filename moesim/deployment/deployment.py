"""A scenario with its data in hand: the trace that is replayed and the placement that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.deployment.batch import batches
from moesim.deployment.memory import Memory, check_memory, memory
from moesim.deployment.placing import place
from moesim.deployment.policies import policies_for
from moesim.deployment.pricing import Pricing
from moesim.deployment.reading import check_shape, load_trace
from moesim.errors import SpecError
from moesim.routing.candidates import are_logits, are_of_sigmoids, sigmoids
from moesim.routing.none import NoPolicy
from moesim.routing.policy import Need, Policy
from moesim.spec.scenario import Scenario
from placement.problem.placement import Placement
from traces.base.memory import require_memory
from traces.routing import RoutingTrace

# A row of the timeline: four int32, two int8, five columns of 8 bytes.
_SPAN_BYTES = 58


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

    @cached_property
    def pricing(self) -> Pricing:
        """What the scenario's work costs."""
        return Pricing(self.scenario, self.policies)

    @property
    def needs(self) -> frozenset[Need]:
        """What policies and dispatch look at: gate weights wherever assignments may be lost."""
        needs = frozenset[Need]().union(*(policy.needs for policy in self.policies))
        idle = all(isinstance(policy, NoPolicy) for policy in self.policies)
        if idle and self.scenario.dispatch.record.returns != "anchor":
            return needs
        return needs | {"weights"}

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


def deploy(scenario: Scenario) -> Deployment:
    """Load what the scenario names and check that it fits together.

    Raises:
        MoesimError: the trace, placement or policy does not fit the model, or the model not the memory.
    """
    check_size(scenario)
    trace = load_trace(scenario)
    check_shape(trace, scenario.model, scenario.trace.file)
    return assemble(scenario, trace, *place(scenario, trace))


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
    whole = -(-steps // scenario.workload.kept_every)
    # Of every step metrics keep a figure for each layer.
    require_memory(
        whole * kept + steps * 8 * (scenario.model.layers + 32),
        f"simulating {steps} steps on {G} GPUs, {whole} of them kept whole,",
        error=SpecError,
        way_out="raise workload.timeline_every, or lower workload.steps or parallelism.ep",
    )
