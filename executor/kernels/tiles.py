"""How large the tiles of the grouped products are: one documented function of shape, and no search.

All values were chosen by reasoning for H100 and H200, as said beside each; none has been measured yet.
``python -m benchmarks.gpu --tune`` measures the neighbours of a choice.
"""

from __future__ import annotations

from dataclasses import dataclass

_PROGRAMS = 2 * 132
"""Two for each multiprocessor of an H100 or H200: with fewer some have no work."""
_ALONE, _SHARED = 200 << 10, 108 << 10
"""Bytes that a program loads ahead, alone on a multiprocessor (227 KiB of shared memory) or one of two."""
_LOW, _HIGH = 16, 128
"""The fewest rows that a tensor core takes, and the most that a tile needs to be bound by arithmetic."""


@dataclass(frozen=True)
class Tile:
    """One program's share of a product, beside its rows.

    Attributes:
        columns: of the result; with a gate as many of both matrices.
        depth: of the inner dimension that is loaded at a time.
        warps: that compute.
        stages: how many such loads are under way.
    """

    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """Those of a whole layer.

    Attributes:
        rows: of both products.
        by_group: whether a program takes all rows of its group, tile by tile, rather than one tile: there is
            then no map of tiles.
        up, down: the two products.
    """

    rows: int
    by_group: bool
    up: Tile
    down: Tile


def choose_tiles(
    assignments: int,
    groups: int,
    hidden: int,
    width: int,
    *,
    gated: bool,
    element_bytes: int,
    eight_bits: bool = False,
) -> Tiles:
    """The tiles of a layer that serves so many assignments; nothing is known of how they spread.

    *Rows*: twice the mean of the groups that can have any, as a power of two from 16 to 128. A second tile
    reads all weights again, and dead rows cost nothing while it is reading weights that takes the time: below
    some 250 rows a group. *By group* up to 32 rows in the mean.
    *Columns*: in tall tiles 256 of all matrices together, for which the L2 cache must give a multiprocessor
    48 bytes a clock, where 128 would take 64; yet 128 if over a tenth of 256 would be wasted. In other tiles
    64 of each matrix, or less until there are two programs for each multiprocessor.
    *Depth*: 128 bytes of every row, or 256 where rows are few.
    *Stages*: as many as shared memory holds, up to 5.
    *Weights of eight bits* have half of the columns in tall tiles: the sum since the last factor takes as
    many registers as the sum of all.

    Qwen3-30B, 64 tokens with 8 of 128 experts, so 4 rows for each:

    >>> choose_tiles(512, 128, 2048, 768, gated=True, element_bytes=2).up
    Tile(columns=64, depth=128, warps=4, stages=3)
    """
    busy = max(1, min(assignments, groups))
    rows = _LOW
    while rows < _HIGH and rows * busy < 2 * assignments:
        rows *= 2
    by_group = assignments <= 32 * busy
    if element_bytes > 2:
        # Full float32 products pass the tensor cores by, and fill the registers.
        return Tiles(min(rows, 64), by_group, Tile(32 if gated else 64, 32, 4, 2), Tile(64, 32, 4, 2))

    def tile(columns: int, depth: int, matrices: int) -> Tile:
        if rows == _HIGH:
            taken = (128 if eight_bits else 256) // matrices
            if -columns % taken > taken // 10 * -(-columns // taken):
                taken //= 2
        else:
            taken = 64
            while taken > _LOW and busy * -(-columns // taken) < _PROGRAMS:
                taken //= 2
        deep = 128 if rows <= 32 and depth % 128 == 0 else 64
        loaded = deep * (rows * element_bytes + matrices * taken * (1 if eight_bits else element_bytes))
        budget = _ALONE if rows == _HIGH else _SHARED
        return Tile(taken, deep, 8 if rows == _HIGH else 4, min(max(budget // loaded, 2), 5))

    return Tiles(rows, by_group, tile(width, hidden, 1 + gated), tile(hidden, width, 1))
