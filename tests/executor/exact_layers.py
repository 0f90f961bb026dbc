"""What a layer gives in float64, and how far rounding may take a real one from it.

Axes: T tokens, K experts per token, S slots, H hidden width, F inner width, N rows of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from executor.experts.weights import Weights
from tests.executor.reference import reference_layer
from tests.tolerance import rounding


@dataclass(frozen=True)
class Exact:
    """A result of float64 and the largest error of each element that rounding explains."""

    value: Tensor
    bound: Tensor

    def __getitem__(self, rows: Tensor | NDArray[np.integer] | slice) -> Exact:
        return Exact(self.value[rows], self.bound[rows])

    def error(self, found: Tensor) -> float:
        """The largest error in bounds, so at most 1; NaN where one was found, infinite for another shape."""
        if found.shape != self.value.shape:
            return float("inf")
        apart = (found.cpu().double() - self.value).abs()
        # What must be 0 has a bound of 0, and then is 0 exactly.
        return float(torch.where(apart == 0, 0.0, apart / self.bound).max()) if apart.numel() else 0.0


def exact_layer(
    x_TH: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    experts: Weights,
    shared: Weights | None = None,
) -> Exact:
    """[T, H] for arguments as those of ``reference_layer``, computed in the dtype of the weights."""
    value_TH = reference_layer(x_TH, expert_TK, weight_TK, experts, shared)
    square_TH = torch.zeros_like(value_TH)
    x_TH, weight_TK = x_TH.cpu().double(), weight_TK.cpu().double()
    for slot in range(int(expert_TK.max()) + 1 if expert_TK.numel() else 0):
        token_A, k_A = (expert_TK.cpu() == slot).nonzero(as_tuple=True)
        size_AH = weight_TK[token_A, k_A, None] * _size(x_TH[token_A], experts, slot)
        square_TH.index_add_(0, token_A, size_AH**2)
    if shared is not None:
        square_TH += _size(x_TH, shared, 0) ** 2
    size_TH = torch.maximum(square_TH.sqrt(), value_TH.abs())
    widths = (x_TH.shape[1], experts.rows, expert_TK.shape[1] + 1)
    return Exact(value_TH, size_TH * layer_rounding(experts.slot(0)[0].dtype, *widths))


def layer_rounding(dtype: torch.dtype, *sums: int) -> float:
    """Of float32 sums of so many products of random signs, one after another, relative to their size.

    Of 16 bits there are few: inner products, their activation and product, an expert's output, its weighted
    part and the sum of parts are rounded once.
    """
    within = rounding(2 * sum(terms**0.5 for terms in sums), "float32")
    return within if dtype == torch.float32 else within + rounding(6, str(dtype).removeprefix("torch."))


def inner_size(x_AH: Tensor, up_NH: Tensor, gated: bool) -> Tensor:
    """[A, F] of silu(gate x) · up x, or silu(up x): roots of the products' squares, or sums where larger."""
    size_AN = torch.maximum((x_AH**2 @ up_NH.T**2).sqrt(), (x_AH @ up_NH.T).abs())
    gate_AF, up_AF = size_AN.chunk(2, dim=1) if gated else (size_AN, torch.ones(()))
    return gate_AF * up_AF


def _size(x_AH: Tensor, weights: Weights, slot: int) -> Tensor:
    """[A, H]: of one expert's output."""
    up_NH, down_HF = (matrix.cpu().double() for matrix in weights.slot(slot))
    inner_AF = inner_size(x_AH, up_NH, weights.gated)
    return (inner_AF**2 @ down_HF.T**2).sqrt()
