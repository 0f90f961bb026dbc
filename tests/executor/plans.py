"""Small random plans: unequal and empty slots, replicas, ranks without tokens, drops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from executor.dispatch.routing import RoutedStep
from executor.experts.weights import ExpertWeights, UnequalWeights
from executor.plan.plan import Kind, MoeShape, Plan
from tests.executor.exact_layers import Exact, exact_layer


def small_plan(
    ranks: int,
    ranks_per_node: int,
    mode: str,
    *,
    seed: int,
    padded: bool = False,
    dtype: str = "fp32",
    tokens: Sequence[int] | None = None,
    top_k: int = 3,
    experts: int = 6,
    spare_slots: int = 4,
    one_expert: bool = False,
    weighted: bool = True,
    steps: int = 1,
    shared_width: int = 0,
    gated: bool = True,
    routing: dict[str, Any] | None = None,
    overlap: tuple[str, ...] = (),
    widths: Sequence[int] = (),
) -> Plan:
    """Two layers; slots on random ranks, each expert in at least one, spare slots empty or with replicas.

    Experts are of kinds at random, one of each of ``widths``; of one kind without any.
    """
    rng = np.random.default_rng(seed)
    slots = experts + spare_slots
    slot_gpu_S = rng.integers(0, ranks, slots).astype(np.int32)
    slot_expert_LS = np.stack(
        [
            rng.permutation(np.concatenate([np.arange(experts), rng.integers(-1, experts, spare_slots)]))
            for _ in range(2)
        ]
    ).astype(np.int16)
    count_LE, slots_LER = replica_table(slot_expert_LS, experts)
    tokens_NG = np.array([rng.integers(0, 6, ranks) if tokens is None else tokens for _ in range(steps)])
    tokens_NG[:, 0] += tokens_NG.sum(axis=1) == 0
    ends = np.cumsum(tokens_NG).reshape(tokens_NG.shape)
    offsets_NG = np.concatenate([ends[:, -1:] - tokens_NG.sum(axis=1, keepdims=True), ends], axis=1)
    shape = (int(ends[-1, -1]), 2)
    ids_TLK = np.argsort(rng.random((*shape, experts)), axis=-1)[..., :top_k]
    if one_expert:
        ids_TLK[..., 1:], ids_TLK[..., 0] = -1, 0
    model = MoeShape("small", 8, 4, gated, experts, top_k, shared_width, (1, 3))
    if widths:
        kind_LE = rng.integers(0, len(widths), (2, experts)).tolist()
        kinds = tuple(Kind(str(width), width) for width in widths)
        model = replace(model, width=max(widths), kinds=kinds, kind_LE=tuple(map(tuple, kind_LE)))
    return Plan(
        "small",
        model,
        ranks,
        ranks_per_node,
        dtype,
        mode,
        padded,
        "round_robin",
        routing or {"policy": "none"},
        seed,
        offsets_NG.astype(np.int64),
        ids_TLK.astype(np.int16),
        rng.random((*shape, top_k)).astype(np.float32) if weighted else None,
        slot_expert_LS,
        slot_gpu_S,
        count_LE,
        slots_LER,
        overlap=overlap,
    )


def replica_table(
    slot_expert_LS: NDArray[np.int16], experts: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(count_LE, slots_LER), found slot by slot."""
    holders = [
        [np.flatnonzero(slot_expert_S == expert) for expert in range(experts)]
        for slot_expert_S in slot_expert_LS
    ]
    count_LE = np.array([[len(slots) for slots in layer] for layer in holders], np.int32)
    slots_LER = np.zeros((*count_LE.shape, count_LE.max()), np.int32)
    for layer, row in enumerate(holders):
        for expert, slots in enumerate(row):
            slots_LER[layer, expert, : len(slots)] = slots
    return count_LE, slots_LER


def step_inputs(plan: Plan, routed: RoutedStep) -> Tensor:
    """The vectors of a step's tokens, the same on every rank."""
    generator = torch.Generator().manual_seed(plan.seed)
    return torch.randn(routed.slot_LTK.shape[1], plan.model.hidden, generator=generator)


def expected(
    plan: Plan, routed: RoutedStep, row: int, x_TH: Tensor, dtype: torch.dtype, device: str = "cpu"
) -> Exact:
    """What a layer must give for all tokens of a step, with weights as ``device`` draws them."""
    slot_TK, layer = routed.slot_LTK[row], plan.model.layers[row]
    expert_TK = np.where(slot_TK >= 0, plan.slot_expert_LS[row][slot_TK], -1)
    made: dict[str, Any] = {"seed": plan.seed, "dtype": dtype, "device": device}
    shared = None
    if plan.model.shared_width:
        shared = ExpertWeights.random_shared(plan.model, layer, **made)
    return exact_layer(
        x_TH,
        torch.from_numpy(expert_TK),
        torch.from_numpy(routed.weights_LTK[row]),
        (UnequalWeights if plan.model.kinds else ExpertWeights).random(
            plan.model, layer, range(plan.model.experts), **made
        ),
        shared,
    )
