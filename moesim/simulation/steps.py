"""From the tokens of a step to its operations: policy, replica choice, counting, costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.profile import Profile
from moesim.routing.policy import Batch
from moesim.routing.replicas import REPLICA_CHOICES
from moesim.simulation.batch import StepTokens, batches, gather_ids, gather_weights
from moesim.simulation.deployment import Deployment
from moesim.simulation.operations import Operation, step_operations
from moesim.simulation.tally import Tally
from moesim.simulation.work import Work, count_work

# Layers are routed and counted in blocks of about so many assignments, to bound memory in a long prefill.
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Step:
    """One step before it runs."""

    tokens: StepTokens
    work: Work
    operations: list[Operation]


@dataclass
class Steps:
    """Makes each step when the engine asks for it; ``made`` is the one it runs."""

    deployment: Deployment
    tally: Tally = field(default_factory=Tally)
    made: Step | None = None

    def __iter__(self) -> Iterator[list[Operation]]:
        deployment, scenario = self.deployment, self.deployment.scenario
        for tokens in batches(deployment.replayed, scenario.workload, scenario.parallelism.ep, scenario.seed):
            work = self._work(tokens)
            self.made = Step(tokens, work, self.operations(tokens, work, scenario.profile))
            yield self.made.operations

    def operations(self, tokens: StepTokens, work: Work, profile: Profile) -> list[Operation]:
        """What this work costs with this profile."""
        deployment = self.deployment
        return step_operations(
            deployment.kernels(profile),
            deployment.fabric(profile),
            work,
            deployment.placement.slot_gpu_S,
            tokens,
            deployment.copy_bytes(),
            deployment.scenario.workload.graph_sizes,
        )

    def _work(self, tokens: StepTokens) -> Work:
        """Route the tokens through policy and placement, and count, a block of layers at a time."""
        deployment, scenario = self.deployment, self.deployment.scenario
        _, L, K = deployment.replayed.ids_TLK.shape
        count_LE, slots_LER = deployment.placement.replica_table()
        choose = REPLICA_CHOICES[scenario.replicas]
        depth = max(1, _BLOCK // max(1, len(tokens.row_T) * K))
        blocks = []
        for first in range(0, L, depth):
            layers = slice(first, first + depth)
            ids_LTK = self._route(tokens, layers)
            slot_LTK = choose(ids_LTK, tokens.offsets_G, count_LE[layers], slots_LER[layers])
            blocks.append(
                count_work(
                    slot_LTK,
                    tokens.offsets_G,
                    deployment.placement.slot_gpu_S,
                    deployment.fabric(scenario.profile).gpus_per_node,
                    scenario.dispatch.mode,
                )
            )
        return Work.join(blocks)

    def _route(self, tokens: StepTokens, layers: slice) -> NDArray[np.int16]:
        """Experts of the tokens after the policy, and what it changed into the tally."""
        trace, policy = self.deployment.replayed, self.deployment.policy
        experts = trace.meta.experts
        ids_LTK = gather_ids(trace.ids_TLK, tokens.row_T, layers)
        weights_LTK = None
        if trace.weights_TLK is not None:
            weights_LTK = gather_weights(trace.weights_TLK, tokens.row_T, layers)
        for layer, ids_TK in enumerate(ids_LTK):
            weights_TK = None if weights_LTK is None else weights_LTK[layer]
            outcome = policy.apply(Batch(ids_TK, weights_TK, tokens.offsets_G, experts))
            self.tally.add(outcome, experts)
            ids_LTK[layer] = outcome.ids_TK
        return ids_LTK
