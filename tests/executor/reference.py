"""What a layer must compute, token by token and in float64: the oracle of every mode and back end.

Axes: T tokens, K experts per token, E logical experts, H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from executor.experts.weights import Weights


def reference_layer(
    x_TH: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    experts: Weights,
    shared: Weights | None = None,
) -> Tensor:
    """float64 [T, H] on the host: for each token the weighted sum of its experts, plus the shared one.

    Args:
        x_TH: the tokens of all ranks.
        expert_TK: the logical expert of each assignment; -1 where it was dropped, which then counts nothing.
        weight_TK: gate weights.
        experts: one slot for each logical expert, in their order.
        shared: its only slot is the shared expert.
    """
    y_TH = torch.zeros(x_TH.shape, dtype=torch.float64)
    for token, x_H in enumerate(x_TH.cpu().double()):
        for expert, weight in zip(expert_TK[token].tolist(), weight_TK[token].tolist(), strict=True):
            if expert >= 0:
                y_TH[token] += weight * _feed_forward(x_H, experts, expert)
        if shared is not None:
            y_TH[token] += _feed_forward(x_H, shared, 0)
    return y_TH


def _feed_forward(x_H: Tensor, weights: Weights, slot: int) -> Tensor:
    """down(silu(gate x) · up x), or down(silu(up x))."""
    up_NH, down_HF = (matrix.cpu().double() for matrix in weights.slot(slot))
    inner_N = up_NH @ x_H
    if weights.gated:
        gate_F, up_F = inner_N.chunk(2)
        inner_N = torch.nn.functional.silu(gate_F) * up_F
    else:
        inner_N = torch.nn.functional.silu(inner_N)
    return down_HF @ inner_N
