"""The kernels of all ranks in one process, rank after rank: for one GPU, or a CPU without interference.

What ranks do to each other is left out: there is no dispatch and no combine, and nobody waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from executor.dispatch.hop import Peers
from executor.dispatch.routing import LayerRouting, RoutedStep
from executor.dispatch.transport import Groups
from executor.layer.moe_layer import MoELayer, plan_layers
from executor.layer.spans import Where, clock_on
from executor.layer.step import routed_steps
from executor.measuring.together import inputs, no_garbage_collection
from executor.plan.options import Options
from executor.plan.plan import Plan
from executor.ranks.memory import check_memory
from executor.ranks.patience import phase_s, preparation_s
from executor.ranks.progress import Mark
from executor.ranks.supervised import Patience


def measure_in_turns(
    plan: Plan, options: Options, device: torch.device, mark: Mark, patience: Patience
) -> list[NDArray[np.int64]]:
    """The spans of every rank, as ``executor.layer.spans.COLUMNS`` says: router, shared expert and experts.

    Only the weights of the rank whose turn it is are in memory.

    Raises:
        PlanError: the weights of a rank do not fit into memory.
    """
    for rank in range(plan.ranks):
        check_memory(plan, rank, device, 1)
    mark.enter("routing")
    routed = routed_steps(plan)
    return [_measure_rank(plan, options, rank, routed, device, mark, patience) for rank in range(plan.ranks)]


@dataclass(frozen=True)
class _Turn:
    """What one rank computes in one layer of one micro-batch.

    Attributes:
        choice: where its own tokens go.
        count_Z: int64, assignments of each of its slots.
        served, tokens: assignments in all, and distinct tokens among them.
    """

    choice: LayerRouting
    count_Z: Tensor
    served: int
    tokens: int

    @classmethod
    def of(cls, plan: Plan, routed: RoutedStep, row: int, rank: int, device: torch.device) -> Self:
        slot_TK = routed.slot_LTK[row]
        mine_TK = (slot_TK >= 0) & (plan.slot_gpu_S[slot_TK] == rank)
        count_S = np.bincount(slot_TK[mine_TK], minlength=len(plan.slot_gpu_S))
        return cls(
            routed.layer(row, rank, device),
            torch.from_numpy(count_S[plan.local_slots(rank)]).to(device),
            int(mine_TK.sum()),
            int(mine_TK.any(axis=1).sum()),
        )


def _measure_rank(
    plan: Plan,
    options: Options,
    rank: int,
    routed: list[list[RoutedStep]],
    device: torch.device,
    mark: Mark,
    patience: Patience,
) -> NDArray[np.int64]:
    rows = range(len(plan.model.layers))
    # Of each step, in each layer, for each micro-batch.
    turns = [
        [[_Turn.of(plan, part, row, rank, device) for part in parts] for row in rows] for parts in routed
    ]
    most = max(
        max(len(turn.choice.token_T), turn.served) for step in turns for layer in step for turn in layer
    )
    x_XH = inputs(plan, most, device)
    patience(preparation_s(plan))
    mark.enter(f"making of rank {rank}'s weights")
    spans = clock_on(device, lambda phase, *where: mark.enter(f"rank {rank}'s {phase}", *where))
    groups = _groups_of(rank, plan)
    layers = plan_layers(plan, groups, backend=options.backend, device=device, spans=spans)
    settled = options.passes.start + (device.type == "cuda")
    with no_garbage_collection():
        for repeat in options.passes:
            if repeat == settled:
                mark.enter("begin")
                patience(phase_s(plan, device.type))
            for step, in_step in enumerate(turns):
                for index, layer, in_layer in zip(plan.model.layers, layers, in_step, strict=True):
                    for micro_batch, turn in enumerate(in_layer):
                        _compute(layer, turn, x_XH, Where(repeat, step, micro_batch, index))
    return spans.table()


def _compute(layer: MoELayer, turn: _Turn, x_XH: Tensor, where: Where) -> None:
    """What the layer does without other ranks."""
    tokens = len(turn.choice.token_T)
    x_TH = x_XH[:tokens]
    with layer.spans.phase("router", where) as span:
        layer.dispatcher.pack(x_TH, layer.router(x_TH, turn.choice))
        span.count(assignments=0, unique_tokens=tokens, bytes=0)
    if layer.shared is not None:
        with layer.spans.phase("shared_expert", where) as span:
            layer.shared(x_TH)
            span.count(assignments=0, unique_tokens=tokens, bytes=0)
    with layer.spans.phase("experts", where) as span:
        layer.experts(x_XH[: turn.served], turn.count_Z)
        span.count(assignments=turn.served, unique_tokens=turn.tokens, bytes=0)


def _groups_of(rank: int, plan: Plan) -> Groups:
    """The groups that a rank would belong to; nothing is sent in them."""
    ranks, per_node = range(plan.ranks), plan.ranks_per_node
    first = rank - rank % per_node
    world, rail, node = (
        Peers(None, tuple(group), group.index(rank))
        for group in (ranks, ranks[rank % per_node :: per_node], ranks[first : first + per_node])
    )
    return Groups(rank, world, rail, node)
