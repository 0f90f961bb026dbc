"""The model over several ranks: its attention on each for its own sequences, its experts on all of them.

The layers are the executor's own, with the model's gates and weights: nothing of the routing is replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from executor.dispatch.modes import dispatcher
from executor.dispatch.transport import Groups, Transport
from executor.experts.loop import LoopExperts, SharedExpert
from executor.experts.weights import ExpertWeights
from executor.layer.gate import Choose, Gate
from executor.layer.moe_layer import MoELayer
from experiments.tiny_moe.model import Layer, Policy, Routing, TinyMoe
from moesim.routing.copies import Copies
from placement.problem.placement import Placement


def spread(model: TinyMoe, placement: Placement, groups: Groups, mode: str = "per_gpu") -> TinyMoe:
    """This rank's part of ``model``, which is left as it is; all ranks make and call theirs together.

    Args:
        placement: of all layers, one GPU for each rank.
        mode: of ``moesim.dispatch.modes.MODES``.
    """
    here = TinyMoe(model.config)
    here.load_state_dict(model.state_dict())
    here.layers = nn.ModuleList(
        _Layer(layer, moe)  # type: ignore[arg-type]  # a ModuleList forgets what it holds
        for layer, moe in zip(here.layers, moe_layers(here, placement, groups, mode), strict=True)
    )
    return here.eval()


def moe_layers(model: TinyMoe, placement: Placement, groups: Groups, mode: str = "per_gpu") -> list[MoELayer]:
    """The MoE part of every layer, shared expert included, as this rank runs it."""
    transport = Transport()
    dispatch = dispatcher(mode, groups, placement.slot_gpu_S, transport)
    copies = Copies(*placement.replica_table(), placement.slot_gpu_S, placement.gpus, len(groups.node))
    mine_S = placement.slot_gpu_S == groups.rank
    made = []
    for row, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        router = Choose(
            Gate(layer.router.weight.detach(), layer.router.top_k),
            groups.rank,
            placement.gpus,
            copies.of(slice(row, row + 1)),
        )
        slots = torch.from_numpy(placement.slot_expert_LS[row, mine_S].astype("int64"))
        # An empty slot, −1, holds whatever: no token comes there.
        held = layer.experts.gate_up.detach()[slots], layer.experts.down.detach()[slots]
        experts = LoopExperts(_weights(*(each.transpose(1, 2) for each in held)))
        shared = SharedExpert(
            _weights(layer.shared.gate_up.weight.detach()[None], layer.shared.down.weight.detach()[None])
        )
        made.append(MoELayer(router, dispatch, transport, experts, shared))
    return made


def _weights(up_SNH: Tensor, down_SHF: Tensor) -> ExpertWeights:
    return ExpertWeights(up_SNH.contiguous(), down_SHF.contiguous(), gated=True)


class _Layer(nn.Module):
    """A layer of the model whose MoE part is on all ranks."""

    def __init__(self, layer: Layer, moe: MoELayer) -> None:
        super().__init__()
        self.layer, self.moe = layer, moe

    def forward(self, x_BCH: Tensor, index: int, policy: Policy | None) -> tuple[Tensor, Routing | None]:
        x_BCH = x_BCH + self.layer.attention(self.layer.attention_norm(x_BCH))
        return x_BCH + self.moe(self.layer.feed_norm(x_BCH).flatten(0, 1)).view_as(x_BCH), None
