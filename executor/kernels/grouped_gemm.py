"""A matrix product for each group of rows with its own matrix, in one launch; plain, not tuned.

Axes: A rows of the result, X rows to take them from, Z groups, N columns of the result, K of the rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS, _DEPTH = 64, 64, 32
"""Of a tile: any powers of two from 16 on are right."""


def grouped_gemm(x_XK: Tensor, weight_ZNK: Tensor, count_Z: Tensor, row_A: Tensor | None = None) -> Tensor:
    """[A, N]: every row times the transposed matrix of its group, summed in float32.

    Two groups of one and two rows, taken from x in the order 2, 0, 1:
    ``out[0] = x[2] @ weight[0].T``, ``out[1] = x[0] @ weight[1].T``, ``out[2] = x[1] @ weight[1].T``.

    Args:
        x_XK: the rows, contiguous along K.
        weight_ZNK: contiguous, of the same dtype.
        count_Z: int64, rows of each group, in the order of the groups.
        row_A: int64, the row of x that each row of the result is made of; by default a from a.
    """
    rows, (groups, columns, depth) = len(x_XK) if row_A is None else len(row_A), weight_ZNK.shape
    out_AN = x_XK.new_empty(rows, columns)
    if rows == 0:
        return out_AN
    # No tile holds rows of two groups, so a group may leave one tile partly empty: that many more at most.
    tiles = rows // _ROWS + min(groups, rows)
    tile_end_Z = ((count_Z + _ROWS - 1) // _ROWS).cumsum(0)
    _grouped_gemm[(tiles, triton.cdiv(columns, _COLUMNS))](
        x_XK,
        out_AN if row_A is None else row_A,
        weight_ZNK,
        out_AN,
        count_Z.cumsum(0),
        tile_end_Z,
        groups,
        columns,
        depth,
        x_XK.stride(0),
        GATHERS=row_A is not None,
        GROUPS=triton.next_power_of_2(groups),
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        DEPTH=_DEPTH,
    )
    return out_AN


@triton.jit
def _grouped_gemm(
    x,
    row,
    weight,
    out,
    row_end,
    tile_end,
    groups,
    columns,
    depth,
    x_stride,
    GATHERS: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One tile of the result. Example: groups of 70, 0 and 3 rows, tiles of 64: tiles 0 and 1 are group 0's
    (``tile_end`` is [2, 2, 3]), tile 2 is group 2's, for two tile ends are not above 2; tile 3 has no group.
    """
    tile = tl.program_id(0)
    all_groups = tl.arange(0, GROUPS)
    tile_ends = tl.load(tile_end + all_groups, mask=all_groups < groups, other=2147483647)
    group = tl.sum((tile_ends <= tile).to(tl.int32))
    if group >= groups:
        return
    before = all_groups < group
    first_tile = tl.max(tl.where(before, tile_ends, 0))
    row_ends = tl.load(row_end + all_groups, mask=all_groups < groups, other=0)
    first_row = tl.max(tl.where(before, row_ends, 0))
    end_row = tl.load(row_end + group)

    a = first_row + (tile - first_tile) * ROWS + tl.arange(0, ROWS)
    a_mask = a < end_row
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    n_mask = n < columns
    source = tl.load(row + a, mask=a_mask, other=0) if GATHERS else a
    x_rows = x + source[:, None] * x_stride
    weight_rows = weight + group.to(tl.int64) * columns * depth + n[None, :] * depth

    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first_k in range(0, depth, DEPTH):
        k = first_k + tl.arange(0, DEPTH)
        k_mask = k < depth
        x_tile = tl.load(x_rows + k[None, :], mask=a_mask[:, None] & k_mask[None, :], other=0.0)
        weight_tile = tl.load(weight_rows + k[:, None], mask=k_mask[:, None] & n_mask[None, :], other=0.0)
        # "ieee" keeps float32 inputs whole, where TF32 would round them to 10 bits.
        total = tl.dot(x_tile, weight_tile, total, input_precision="ieee")
    mask = a_mask[:, None] & n_mask[None, :]
    tl.store(out + a[:, None] * columns + n[None, :], total.to(out.dtype.element_ty), mask=mask)
