"""A matrix product for each group of rows with its own matrix, in one launch, with what surrounds it.

Rows are gathered as they are loaded and scattered as they are stored: nothing is copied, nothing is padded.
Axes: A rows in the order of their groups, X rows to take them from, Y rows of the result, Z groups, N columns
of the result, M of all matrices of a group together, K of the rows, B and C blocks along M and K.
"""

from __future__ import annotations

from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from executor.kernels.eight_bits import BLOCK
from executor.kernels.schedule import Schedule
from executor.kernels.tiles import Tile

Activation = Literal["none", "silu", "swiglu"]

_BAND = 8
"""Tiles of rows that go with one tile of columns before the next is begun: the 132 programs of a moment
share 8 x 16 tiles through the L2 cache. Chosen by reasoning, not yet measured."""


def grouped_gemm(
    x_XK: Tensor,
    weight_ZMK: Tensor,
    groups: Schedule,
    tile: Tile,
    *,
    activation: Activation = "none",
    order_A: Tensor | None = None,
    gather: int | None = None,
    scatter: bool = False,
    scale_Y: Tensor | None = None,
    factor_ZBC: Tensor | None = None,
) -> Tensor:
    """[Y, N]: every row times the transposed matrix of its group, summed in float32.

    Groups of one and two rows, order 2, 0, 1. Gathered by 1: ``out[0] = x[2] @ weight[0].T``,
    ``out[1] = x[0] @ weight[1].T``, ``out[2] = x[1] @ weight[1].T``. Scattered instead:
    ``out[2] = x[0] @ weight[0].T``, ``out[0] = x[1] @ weight[1].T``, ``out[1] = x[2] @ weight[1].T``.

    Args:
        x_XK: the rows, contiguous along K.
        weight_ZMK: contiguous, of the same dtype, or float8_e4m3fn with factors; M = N, or 2 N with those of
            the gate first for ``swiglu``.
        groups: of the A rows. Rows behind the last group are left as they are in fresh memory.
        activation: of the sums: silu(y), or silu(gate) · y, before they are rounded.
        order_A: int32 [A], numbers of the rows.
        gather: row a is taken from row ``order_A[a] // gather`` of x; by default from row a.
        scatter: whether row a goes to row ``order_A[a]`` of the result rather than to row a.
        scale_Y: floats, by which the rows of the result are multiplied before they are rounded.
        factor_ZBC: float32, contiguous, of :mod:`executor.kernels.eight_bits`. Weights are multiplied in the
            dtype of the rows, which holds all their values; then the float32 sum over a tile's depth, which
            must divide 128, is multiplied by the factor.

    Raises:
        ValueError: a tile's depth that spans two factors.
    """
    if factor_ZBC is not None and BLOCK % tile.depth:
        raise ValueError(f"depth must divide {BLOCK} where weights have factors (got {tile.depth})")
    matrices = 2 if activation == "swiglu" else 1
    columns, depth = weight_ZMK.shape[1] // matrices, weight_ZMK.shape[2]
    out_YN = x_XK.new_empty(len(x_XK) if order_A is None else len(order_A), columns)
    nothing = groups.end_Z  # stands for a pointer that is not read
    _grouped_gemm[(groups.tiles * triton.cdiv(columns, tile.columns),)](
        x_XK,
        weight_ZMK,
        out_YN,
        nothing if order_A is None else order_A,
        nothing if scale_Y is None else scale_Y,
        nothing if factor_ZBC is None else factor_ZBC,
        groups.end_Z if groups.end_M is None else groups.end_M,
        nothing if groups.group_M is None else groups.group_M,
        nothing if groups.row_M is None else groups.row_M,
        groups.tiles,
        columns,
        depth,
        x_XK.stride(0),
        ACTIVATION=activation,
        GATHER=gather or 0,
        SCATTERS=scatter,
        SCALES=scale_Y is not None,
        BLOCK=0 if factor_ZBC is None else BLOCK,
        BY_GROUP=groups.group_M is None,
        BAND=1 if groups.group_M is None else _BAND,
        WHOLE=depth % tile.depth == 0,
        ROWS=groups.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out_YN


# Nothing is compiled anew for another number of tokens.
@triton.jit(do_not_specialize=("tiles",))
def _grouped_gemm(
    x,
    weight,
    out,
    order,
    scale,
    factor,
    end,
    tile_group,
    tile_row,
    tiles,
    columns,
    depth,
    x_stride,
    ACTIVATION: tl.constexpr,
    GATHER: tl.constexpr,
    SCATTERS: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK: tl.constexpr,
    BY_GROUP: tl.constexpr,
    BAND: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Some columns of one tile of rows, or of one tile after the other of a group."""
    column_tiles = tl.cdiv(columns, COLUMNS)
    in_band = tl.program_id(0) % (BAND * column_tiles)
    first_tile = tl.program_id(0) // (BAND * column_tiles) * BAND
    height = tl.minimum(tiles - first_tile, BAND)
    tile = first_tile + in_band % height
    first_n = in_band // height * COLUMNS

    if BY_GROUP:
        group = tile
        first = tl.load(end + tile - 1, mask=tile > 0, other=0)
    else:
        group = tl.load(tile_group + tile)
        first = tl.load(tile_row + tile)
    last = tl.load(end + tile)
    if first >= last:
        return

    # What lies outside is computed from rows that exist and then not stored: loads need no mask.
    # Matrices and rows are numbered in 64 bits: a layer's weights alone may have more than 2^31 elements.
    MATRICES: tl.constexpr = 2 if ACTIVATION == "swiglu" else 1
    k = tl.arange(0, DEPTH)
    # Columns of the gate, then the same of up: one product, which reads its rows once.
    m = tl.arange(0, MATRICES * COLUMNS)
    m = m // COLUMNS * columns + tl.minimum(first_n + m % COLUMNS, columns - 1)
    matrix = weight + group.to(tl.int64) * (MATRICES * columns) * depth
    weights = matrix + m.to(tl.int64)[None, :] * depth + k[:, None]
    factors = factor
    if BLOCK:
        blocks = tl.cdiv(depth, BLOCK)
        factors += group.to(tl.int64) * tl.cdiv(MATRICES * columns, BLOCK) * blocks + m // BLOCK * blocks
    for first_row in range(first, last, ROWS):
        a = first_row + tl.arange(0, ROWS)
        a_mask = a < last
        source = tl.where(a_mask, a, first_row)
        if GATHER:
            source = tl.load(order + source) // GATHER
        rows = x + source.to(tl.int64)[:, None] * x_stride + k[None, :]
        total = tl.zeros((ROWS, MATRICES * COLUMNS), tl.float32)
        for first_k in range(0, depth, DEPTH):
            # Weights first, for they need not wait until it is known which rows go with them.
            if WHOLE:
                w_tile = tl.load(weights + first_k)
                x_tile = tl.load(rows + first_k)
            else:
                inside = k < depth - first_k
                w_tile = tl.load(weights + first_k, mask=inside[:, None], other=0.0)
                x_tile = tl.load(rows + first_k, mask=inside[None, :], other=0.0)
            # "ieee" keeps float32 inputs whole, where TF32 would round them to 10 bits.
            if BLOCK:
                product = tl.dot(x_tile, w_tile.to(x_tile.dtype), input_precision="ieee")
                total += product * tl.load(factors + first_k // BLOCK)[None, :]
            else:
                total = tl.dot(x_tile, w_tile, total, input_precision="ieee")
        if ACTIVATION == "swiglu":
            # In all but the narrowest tiles a thread holds columns of both, so that nothing moves.
            total, up = total.reshape(ROWS, 2, COLUMNS).permute(0, 2, 1).split()
        if ACTIVATION != "none":
            total *= tl.sigmoid(total)
        if ACTIVATION == "swiglu":
            total *= up
        target = a
        if SCATTERS:
            target = tl.load(order + a, mask=a_mask, other=0)
        if SCALES:
            total *= tl.load(scale + target, mask=a_mask, other=0.0).to(tl.float32)[:, None]
        n = first_n + tl.arange(0, COLUMNS)
        cells = out + target.to(tl.int64)[:, None] * columns + n[None, :]
        tl.store(cells, total.to(out.dtype.element_ty), mask=a_mask[:, None] & (n < columns)[None, :])
