"""Which rows each program of a grouped product takes: tiles of one group each, found on the GPU.

Axes: Z groups, M tiles, A rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILES = 32
"""That one program looks up."""


@dataclass(frozen=True)
class Schedule:
    """Groups of rows, cut into tiles.

    Attributes:
        end_Z: int32, where each group's rows end.
        rows: of a tile.
        tiles: M, at least as many as there are; or Z where each program takes a whole group.
        group_M, row_M, end_M: int32, the group and the first row of each tile, and where its rows end; None
            where programs take groups.
    """

    end_Z: Tensor
    rows: int
    tiles: int
    group_M: Tensor | None = None
    row_M: Tensor | None = None
    end_M: Tensor | None = None


def schedule(end_Z: Tensor, rows_A: int, rows: int, *, by_group: bool) -> Schedule:
    """Cut groups into tiles without waiting for the GPU to say how many there are.

    No tile holds rows of two groups, so each group may leave one tile partly empty: A // rows + min(Z, A) are
    enough. Groups of 70, 0 and 3 rows, tiles of 64: ``group_M`` is [0, 0, 2, 0], ``row_M`` [0, 64, 70, 73],
    ``end_M`` [64, 70, 73, 73]; the last tile is empty.

    Args:
        end_Z: int32, ascending; rows behind the last end belong to nobody.
        rows_A: A, from 1 on.
        rows: of a tile.
        by_group: one program for each group and no map: for groups of a tile or two.
    """
    groups = len(end_Z)
    if by_group:
        return Schedule(end_Z, rows, groups)
    tiles = rows_A // rows + min(groups, rows_A)
    # Three tensors rather than three rows of one, whose alignment would depend on how many tiles there are.
    group_M, row_M, end_M = (torch.empty(tiles, dtype=torch.int32, device=end_Z.device) for _ in range(3))
    _map_tiles[(triton.cdiv(tiles, _TILES),)](
        end_Z,
        group_M,
        row_M,
        end_M,
        tiles,
        groups,
        rows_A,
        ROWS=rows,
        GROUPS=triton.next_power_of_2(groups),
        TILES=_TILES,
    )
    return Schedule(end_Z, rows, tiles, group_M, row_M, end_M)


@triton.jit(do_not_specialize=("tiles", "rows_in_all"))
def _map_tiles(
    end,
    tile_group,
    tile_row,
    tile_row_end,
    tiles,
    groups,
    rows_in_all,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    TILES: tl.constexpr,
):
    """The group of a tile is how many groups have all of their tiles before it."""
    z = tl.arange(0, GROUPS)
    row_end = tl.load(end + z, mask=z < groups, other=0)
    row_start = tl.load(end + z - 1, mask=(z > 0) & (z < groups), other=0)
    tile_end = tl.cumsum(tl.cdiv(row_end - row_start, ROWS), axis=0)
    m = tl.program_id(0) * TILES + tl.arange(0, TILES)
    passed = (tile_end[None, :] <= m[:, None]) & (z < groups)[None, :]
    group = tl.sum(passed.to(tl.int32), axis=1)
    first_tile = tl.max(tl.where(passed, tile_end[None, :], 0), axis=1)
    first_row = tl.max(tl.where(passed, row_end[None, :], 0), axis=1)
    found = group < groups
    row = tl.where(found, first_row + (m - first_tile) * ROWS, rows_in_all)
    # The first end that is not passed is that of the tile's own group.
    own_end = tl.min(tl.where(passed | (z >= groups)[None, :], rows_in_all, row_end[None, :]), axis=1)
    tl.store(tile_group + m, tl.where(found, group, 0), mask=m < tiles)
    tl.store(tile_row + m, row, mask=m < tiles)
    tl.store(tile_row_end + m, tl.minimum(row + ROWS, own_end), mask=m < tiles)
