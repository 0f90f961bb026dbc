"""Seconds of a GEMM, grouped or not: whole tiles in waves over the multiprocessors, and a roofline.

Axes: M tile heights, W tile widths, X anything the caller likes ([L, G] layers and GPUs, or [G]).
A GEMM multiplies ``rows`` of depth k by a weight matrix k × n of each group; a group is an expert's slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.spec.profile import Profile, Roof

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Rates:
    """What the hardware promises: FLOP per second (of each GPU), bytes per second, multiprocessors."""

    flops: FloatArray | float
    bandwidth: float
    sms: int


@dataclass(frozen=True)
class Rows:
    """The rows of a GEMM.

    Attributes:
        tiles_MX: tiles that hold them, for each tile height, and what starting costs in tiles; a tile never
            spans groups.
        groups_X: groups that have rows at all: only their weights are read.
        rows_X: the rows themselves.
    """

    tiles_MX: FloatArray
    groups_X: FloatArray
    rows_X: FloatArray

    @classmethod
    def of(cls, rows_X: FloatArray, profile: Profile) -> Rows:
        """One group: a dense GEMM."""
        groups_X = (rows_X > 0).astype(np.float64)
        padded_MX = np.array([np.ceil(rows_X / tile.rows) * tile.rows for tile in profile.tiles])
        return cls.padded(padded_MX, groups_X, rows_X, profile)

    @classmethod
    def padded(
        cls, padded_MX: FloatArray, groups_X: FloatArray, rows_X: FloatArray, profile: Profile
    ) -> Rows:
        """From rows that are padded to whole tiles of each height; groups start before their first one."""
        tiles_MX = np.array(
            [
                (padded_X + tile.start * groups_X) / tile.rows
                for tile, padded_X in zip(profile.tiles, padded_MX, strict=True)
            ]
        )
        return cls(tiles_MX, groups_X, rows_X)


@dataclass(frozen=True)
class Matrix:
    """A weight matrix, k deep and n wide, with the bytes of one input, one weight and one output."""

    n: float
    k: float
    input_bytes: float
    weight_bytes: float
    output_bytes: float


def gemm_seconds(rows: Rows, matrix: Matrix, roof: Roof, profile: Profile, rates: Rates) -> FloatArray:
    """Seconds of one launch, at the tile shape that takes it the least time.

    A tile of h × w outputs takes 2·h·w·(k + d) FLOP at its height's efficiency, where d, the roof's
    ``drain``, stands for filling and draining its pipeline. All multiprocessors work on a wave of tiles
    together, so a started wave counts whole. Every term grows with the rows, so their minimum does.

    Example: 100 rows, tiles of 64 × 64, a matrix 128 wide and 32 deep, 2 multiprocessors: 2 × 2 tiles are
    2 waves of 2 · 64 · 64 · 32 FLOP on each, 524288 FLOP in all.

    >>> from moesim.spec.profile import DATA_SHEET, Tile
    >>> profile = DATA_SHEET.model_copy(update={"tiles": (Tile(rows=64, efficiency=1),), "widths": (64,)})
    >>> rows = Rows.of(np.array([100.0]), profile)
    >>> gemm_seconds(rows, Matrix(128, 32, 0, 0, 0), profile.gemm, profile, Rates(1e6, 1.0, 2)).tolist()
    [1.048576]
    """
    depth = matrix.k + (roof.drain / matrix.input_bytes if roof.drain else 0.0)
    flop_X = np.minimum.reduce(
        [
            2.0 * tile.rows * depth / tile.efficiency * _columns(tiles_X, matrix.n, profile.widths, rates.sms)
            for tile, tiles_X in zip(profile.tiles, rows.tiles_MX, strict=True)
        ]
    )
    bytes_X = rows.groups_X * (matrix.n * matrix.k * matrix.weight_bytes)
    bytes_X = bytes_X + rows.rows_X * (matrix.k * matrix.input_bytes + matrix.n * matrix.output_bytes)
    return roofline(flop_X, bytes_X, roof, rates)


def roofline(flop_X: FloatArray, bytes_X: FloatArray, roof: Roof, rates: Rates) -> FloatArray:
    """The longer of arithmetic and memory traffic, and of the shorter what does not overlap."""
    compute_X = flop_X / (rates.flops * roof.compute)
    memory_X = bytes_X / (rates.bandwidth * roof.memory)
    hidden_X = np.minimum(compute_X, memory_X)
    return np.maximum(compute_X, memory_X) + (1.0 - roof.overlap) * hidden_X


def _columns(tiles_X: FloatArray, n: float, widths: Sequence[int], sms: int) -> FloatArray:
    """Columns of all row tiles together, idle multiprocessors of a wave included, at the best width."""
    if not widths:
        return tiles_X * n
    width_W = np.array(widths, np.float64).reshape(-1, *(1 for _ in tiles_X.shape))
    waves_WX = np.ceil(tiles_X * np.ceil(n / width_W) / sms)
    columns_X: FloatArray = (waves_WX * (sms * width_W)).min(axis=0)
    return columns_X
