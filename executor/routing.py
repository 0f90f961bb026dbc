"""From what a router chose to what each rank does with it: policy, replicas, and where tokens go.

Axes: L MoE layers, T tokens, K experts per token, S slots, G ranks, X = L + 1 moments between layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from executor.errors import PlanError
from executor.plan import Plan, StepRouting
from moesim.routing.anchor import path_XT
from moesim.routing.catalogue import policy_from
from moesim.routing.policy import Batch, Outcome
from moesim.routing.replicas import REPLICA_CHOICES


@dataclass(frozen=True)
class LayerRouting:
    """Where the T tokens that one rank holds go in one layer.

    Attributes:
        slot_TK: int32, the slot that serves each assignment; -1 where there is none.
        weight_TK: float32 gate weights, ignored where the slot is -1.
        token_T: int32, each token's number in its step, ascending.
        goes_T: int32, the rank on which each token is after the layer.
    """

    slot_TK: Tensor
    weight_TK: Tensor
    token_T: Tensor
    goes_T: Tensor


@dataclass(frozen=True)
class RoutedStep:
    """The routing of one step that all ranks follow.

    Attributes:
        slot_LTK: int16, the slot that serves each assignment; -1 where it was dropped.
        weights_LTK: float32 gate weights as the policy left them; 1 / K where the trace has none.
        rank_XT: int32, the rank that holds each token before each layer, and after the last.
        outcomes: what the policy changed in each layer.
    """

    slot_LTK: npt.NDArray[np.int16]
    weights_LTK: npt.NDArray[np.float32]
    rank_XT: npt.NDArray[np.int32]
    outcomes: tuple[Outcome, ...]

    def tokens(self, layer: int, rank: int) -> npt.NDArray[np.int64]:
        """The tokens that a rank holds before a layer (its row, from 0), ascending."""
        return np.flatnonzero(self.rank_XT[layer] == rank)

    def layer(self, layer: int, rank: int, device: torch.device | str = "cpu") -> LayerRouting:
        """What a rank needs to know of a layer (its row, from 0)."""
        token_T = self.tokens(layer, rank)
        return LayerRouting(
            torch.from_numpy(self.slot_LTK[layer, token_T].astype(np.int32)).to(device),
            torch.from_numpy(self.weights_LTK[layer, token_T]).to(device),
            torch.from_numpy(token_T.astype(np.int32)).to(device),
            torch.from_numpy(self.rank_XT[layer + 1, token_T]).to(device),
        )

    def with_unit_weights(self) -> RoutedStep:
        """The same tokens in the same places, each assignment counting once."""
        return replace(self, weights_LTK=np.ones_like(self.weights_LTK))


def route(plan: Plan, step: StepRouting) -> RoutedStep:
    """Apply the plan's policy and replica choice to one of its steps.

    Raises:
        PolicyError: the plan's policy is not known, or needs gate weights that it lacks.
        PlanError: the plan's replica choice is not known.
    """
    policy = policy_from(plan.routing)
    if plan.replicas not in REPLICA_CHOICES:
        known = ", ".join(REPLICA_CHOICES)
        raise PlanError(f"must be one of: {known}", field="replicas", got=plan.replicas)
    ids_LTK = step.ids_LTK.copy()
    weights_LTK = None if step.weights_LTK is None else step.weights_LTK.copy()
    outcomes = []
    for layer in range(len(ids_LTK)):
        weights_TK = None if weights_LTK is None else weights_LTK[layer]
        outcome = policy.apply(Batch(ids_LTK[layer], weights_TK, step.offsets_G, plan.model.experts))
        ids_LTK[layer] = outcome.ids_TK
        if weights_LTK is not None and outcome.weights_TK is not None:
            weights_LTK[layer] = outcome.weights_TK
        outcomes.append(outcome)
    slot_LTK = REPLICA_CHOICES[plan.replicas](ids_LTK, step.offsets_G, plan.count_LE, plan.slots_LER)
    L, _, K = slot_LTK.shape
    home_T = np.repeat(np.arange(plan.ranks, dtype=np.int32), np.diff(step.offsets_G))
    rank_XT = np.broadcast_to(home_T, (L + 1, len(home_T)))
    if plan.mode == "expert_to_expert":
        rank_XT = path_XT(slot_LTK, weights_LTK, home_T, plan.slot_gpu_S)
        rank_XT[-1] = home_T
    if weights_LTK is None:
        weights_LTK = np.full(slot_LTK.shape, 1 / K, np.float32)
    return RoutedStep(slot_LTK, weights_LTK, rank_XT, tuple(outcomes))
