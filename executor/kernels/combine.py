"""What a token's experts said, added up in the order of its choices: the same sum in every run.

Axes: T tokens, K choices, H hidden width.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024
"""That a program adds up: 16 bytes for each thread of four warps. Chosen by reasoning, not yet measured."""


def combine(out_AH: Tensor, ids_TK: Tensor, slots: int) -> Tensor:
    """[T, H]: the sum over k of row t · K + k, in float32; rows that no slot serves are not read.

    Args:
        out_AH: contiguous, A = T · K.
        ids_TK: contiguous; from 0 to ``slots`` - 1, any other means: nobody serves it.
        slots: how many there are.
    """
    (tokens, choices), width = ids_TK.shape, out_AH.shape[1]
    y_TH = out_AH.new_empty(tokens, width)
    columns = min(_COLUMNS, triton.next_power_of_2(width))
    _combine[(tokens, triton.cdiv(width, columns))](
        out_AH, ids_TK, y_TH, slots, width, CHOICES=choices, COLUMNS=columns
    )
    return y_TH


@triton.jit
def _combine(rows, ids, y, slots, width, CHOICES: tl.constexpr, COLUMNS: tl.constexpr):
    """Some columns of one token."""
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    # Unrolled, so that all rows are under way at once.
    for choice in tl.static_range(CHOICES):
        a = token * CHOICES + choice
        slot = tl.load(ids + a)
        # Not `served & (h < width)`: Triton's interpreter makes numbers of a scalar beside a block.
        there = tl.where((slot >= 0) & (slot < slots), width, 0)
        total += tl.load(rows + a * width + h, mask=h < there, other=0.0).to(tl.float32)
    tl.store(y + token * width + h, total.to(y.dtype.element_ty), mask=h < width)
