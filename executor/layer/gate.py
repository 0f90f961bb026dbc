"""Routers: a gate from its weights, alone or beside a recorded choice.

Axes: T tokens of one rank, K experts per token, E logical experts, R most replicas, G ranks, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from executor.dispatch.routing import LayerRouting
from executor.experts.weights import GATE, fill_
from executor.plan.errors import PlanError
from executor.plan.plan import MoeShape
from moesim.routing.copies import Copies
from moesim.routing.none import NoPolicy
from moesim.routing.policy import Batch, Policy
from moesim.routing.replicas import ReplicaChoice, round_robin


@dataclass(frozen=True)
class Gate:
    """The k experts with the best scores, with weights that sum to 1.

    Two experts with logits 0 and ln 3: their softmax is [1/4, 3/4].

    >>> ids_TK, weight_TK = Gate(torch.tensor([[0.0], [3.0]]).log().clamp(min=0.0), 2)(torch.ones(1, 1))
    >>> ids_TK.tolist(), [round(weight, 3) for weight in weight_TK[0].tolist()]
    ([[1, 0]], [0.75, 0.25])

    Attributes:
        weight_EH: of the linear layer.
        top_k: K.
        score: ``softmax`` over all experts (Mixtral, arXiv 2401.04088, section 2.1, takes it over the k best,
            which comes to the same), or ``sigmoid`` of each (DeepSeek-V3, arXiv 2412.19437, equations 13 to
            15, without its bias).
    """

    weight_EH: Tensor
    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"

    @classmethod
    def random(
        cls,
        shape: MoeShape,
        layer: int,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Gate:
        """Normal weights that depend on seed and layer (true index) alone."""
        weight_EH = torch.empty(shape.experts, shape.hidden, dtype=dtype, device=device)
        fill_(weight_EH, seed=(seed, layer, GATE))
        return cls(weight_EH, shape.top_k)

    def __call__(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """ids_TK int64 and weight_TK float32, the best expert first."""
        logits_TE = (x_TH @ self.weight_EH.T).float()
        score_TE = logits_TE.softmax(-1) if self.score == "softmax" else logits_TE.sigmoid()
        weight_TK, ids_TK = score_TE.topk(self.top_k, dim=-1)
        return ids_TK, weight_TK / weight_TK.sum(-1, keepdim=True)


class Router(Protocol):
    """Says where the tokens of a rank go."""

    def __call__(self, x_TH: Tensor, routing: LayerRouting | None) -> LayerRouting:
        """The routing of ``x_TH``; ``routing`` is the recorded one, where there is one."""


@dataclass(frozen=True)
class Replay:
    """Computes a gate, which takes its time, and follows the recorded choice."""

    gate: Gate

    def __call__(self, x_TH: Tensor, routing: LayerRouting | None) -> LayerRouting:
        """See :class:`Router`."""
        if routing is None:
            raise PlanError("a replay needs the recorded routing of the layer", field="routing", got=None)
        self.gate(x_TH)
        return routing


@dataclass(frozen=True)
class Choose:
    """Follows its gate, through a policy and a choice of replicas that look at this rank's tokens alone.

    Tokens are where they were after the layer, in every dispatch mode.

    Attributes:
        gate: of the layer.
        rank, ranks: this one of how many.
        copies: of the experts of this one layer.
        policy: as in a simulation; needs nothing of other ranks.
        replicas: as in a simulation.
    """

    gate: Gate
    rank: int
    ranks: int
    copies: Copies
    policy: Policy = field(default_factory=NoPolicy)
    replicas: ReplicaChoice = round_robin

    def __call__(self, x_TH: Tensor, routing: LayerRouting | None) -> LayerRouting:
        """See :class:`Router`; policies run on the host."""
        ids_TK, weight_TK = (tensor.cpu().numpy() for tensor in self.gate(x_TH))
        T = len(ids_TK)
        offsets_G = np.where(np.arange(self.ranks + 1) > self.rank, T, 0)
        batch = Batch(
            ids_TK.astype(np.int16),
            weight_TK,
            offsets_G,
            self.copies.count_LE.shape[1],
            held=self.copies.held(0),
        )
        outcome = self.policy.apply(batch)
        slot_1TK = self.replicas(outcome.ids_TK[None], offsets_G, self.copies)
        chosen_TK = weight_TK if outcome.weights_TK is None else outcome.weights_TK
        device = x_TH.device
        return LayerRouting(
            torch.from_numpy(slot_1TK[0].astype(np.int32)).to(device),
            torch.from_numpy(chosen_TK).to(device),
            torch.arange(T, dtype=torch.int32, device=device),
            torch.full((T,), self.rank, dtype=torch.int32, device=device),
        )
