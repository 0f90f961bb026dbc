"""Weights in 8 bits with a factor for each block of them, as DeepSeek-V3 has them (arXiv 2412.19437, 3.3.2).

Axes: Z matrices, M and K their rows and columns, B and C blocks along M and K.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Rows and columns of a block."""
_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def to_eight_bits(weight_ZMK: Tensor) -> tuple[Tensor, Tensor]:
    """(eight_ZMK float8_e4m3fn, factor_ZBC float32), whose product is close to the weights.

    The largest weight of a block becomes 448, the largest number of 8 bits; others are off by at most 1/16 of
    themselves, the smallest by 2^-10 of the factor.
    """
    Z, M, K = weight_ZMK.shape
    B, C = -(-M // BLOCK), -(-K // BLOCK)
    eight_ZMK = torch.empty_like(weight_ZMK, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    factor_ZBC = torch.empty(Z, B, C, device=weight_ZMK.device)
    # One matrix at a time: in float32 all of them may not fit.
    for weight_MK, eight_MK, factor_BC in zip(weight_ZMK, eight_ZMK, factor_ZBC, strict=True):
        whole_MK = weight_MK.new_zeros(B * BLOCK, C * BLOCK, dtype=torch.float32)
        whole_MK[:M, :K] = weight_MK
        largest_BC = whole_MK.view(B, BLOCK, C, BLOCK).abs().amax(dim=(1, 3))
        factor_BC.copy_(torch.where(largest_BC > 0, largest_BC / _LARGEST, 1.0))
        eight_MK.copy_((whole_MK[:M, :K] / _spread(factor_BC, M, K)).clamp(-_LARGEST, _LARGEST))
    return eight_ZMK, factor_ZBC


def from_eight_bits(eight_XMK: Tensor, factor_XBC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights that the kernels multiply with; of one matrix, or of any number of them."""
    M, K = eight_XMK.shape[-2:]
    return eight_XMK.to(dtype) * _spread(factor_XBC, M, K)


def _spread(factor_XBC: Tensor, M: int, K: int) -> Tensor:
    """[X, M, K]: the factor of each weight."""
    return factor_XBC.repeat_interleave(BLOCK, -2)[..., :M, :].repeat_interleave(BLOCK, -1)[..., :K]
