"""Neighbours of the tiles that ``choose_tiles`` takes, one change at a time: does any do better?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from triton.runtime.errors import OutOfResources

from benchmarks.gpu.cases import Case
from benchmarks.gpu.measure import batch
from benchmarks.gpu.rivals import Weights
from benchmarks.gpu.roofline import median_s
from executor.kernels.layer import moe_layer
from executor.kernels.tiles import Tile, Tiles, choose_tiles


@dataclass(frozen=True)
class Tuned:
    """The best of a case, and how much faster than the choice it is."""

    case: Case
    chosen: Tiles
    best: Tiles
    speedup: float


def neighbours(tiles: Tiles) -> Iterator[Tiles]:
    """All that differ in one number.

    >>> tile = Tile(64, 64, 4, 3)
    >>> len(list(neighbours(Tiles(32, True, tile, tile))))
    17
    """
    yield replace(tiles, by_group=not tiles.by_group)
    for rows in (tiles.rows // 2, tiles.rows * 2):
        if 16 <= rows <= 128:
            yield replace(tiles, rows=rows)
    for up in _around(tiles.up):
        yield replace(tiles, up=up)
    for down in _around(tiles.down):
        yield replace(tiles, down=down)


def _around(tile: Tile) -> Iterator[Tile]:
    for columns in (tile.columns // 2, tile.columns * 2):
        if 16 <= columns <= 256:
            yield replace(tile, columns=columns)
    for depth in (tile.depth // 2, tile.depth * 2):
        yield replace(tile, depth=depth)
    yield replace(tile, warps=12 - tile.warps)
    for stages in (tile.stages - 1, tile.stages + 1):
        if stages >= 2:
            yield replace(tile, stages=stages)


def tune(case: Case, weights: Weights) -> Tuned:
    """Time the choice and its neighbours."""
    inputs, shape = batch(case), case.shape
    chosen = choose_tiles(
        case.assignments, shape.experts, shape.hidden, shape.width, gated=True, element_bytes=2
    )
    layer = partial(moe_layer, *inputs, weights.up_ENH, weights.down_EHF)
    graph = case.phase == "decode"
    seconds = {chosen: median_s(partial(layer, tiles=chosen), graph=graph)}
    for tiles in neighbours(chosen):
        try:
            seconds[tiles] = median_s(partial(layer, tiles=tiles), graph=graph)
        except OutOfResources:
            continue
    best = min(seconds, key=seconds.__getitem__)
    return Tuned(case, chosen, best, seconds[chosen] / seconds[best])
