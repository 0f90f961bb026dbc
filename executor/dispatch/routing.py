"""From what a router chose to what each rank does with it: policy, replicas, and where tokens go.

Axes: L MoE layers, T tokens, K experts that a
token visits at most, J in :mod:`moesim.routing.stages`, S slots, G ranks, X = L + 1 moments between layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from executor.plan.errors import PlanError
from executor.plan.plan import Plan, StepRouting
from moesim.dispatch.anchor import path_XT
from moesim.dispatch.modes import MODES
from moesim.routing.policies import policies_from
from moesim.routing.policy import Outcome
from moesim.routing.replicas import REPLICA_CHOICES
from moesim.routing.stages import route as route_layers


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
        outcomes: of each layer what each policy made of the router's choice.
    """

    slot_LTK: npt.NDArray[np.int16]
    weights_LTK: npt.NDArray[np.float32]
    rank_XT: npt.NDArray[np.int32]
    outcomes: tuple[tuple[Outcome, ...], ...]

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
    policies = policies_from(plan.routing)
    if plan.replicas not in REPLICA_CHOICES:
        known = ", ".join(REPLICA_CHOICES)
        raise PlanError(f"must be one of: {known}", field="replicas", got=plan.replicas)
    copies = plan.copies
    routed = route_layers(policies, plan.batches(step))
    weights_LTK = routed.weights_LTJ
    slot_LTK = REPLICA_CHOICES[plan.replicas](routed.ids_LTJ, step.offsets_G, copies)
    L = len(slot_LTK)
    home_T = np.repeat(np.arange(plan.ranks, dtype=np.int32), np.diff(step.offsets_G))
    rank_XT = np.broadcast_to(home_T, (L + 1, len(home_T)))
    if MODES[plan.mode].returns == "anchor":
        rank_XT = path_XT(slot_LTK, weights_LTK, home_T, plan.slot_gpu_S, home_T)
    if weights_LTK is None:
        weights_LTK = np.full(slot_LTK.shape, 1 / plan.model.top_k, np.float32)
    return RoutedStep(slot_LTK, weights_LTK, rank_XT, routed.outcomes)
