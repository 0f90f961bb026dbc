"""DeepGEMM's first tables: FP8 with bf16 outputs on H800, and what the cost model makes of each cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.hardware.gemm import Matrix, Rates, Rows, gemm_seconds
from moesim.spec.profile import Profile, Roof

SOURCE = "DeepGEMM, README.md at a6d97a1: FP8 GEMMs with bf16 outputs, H800"


@dataclass(frozen=True)
class Cell:
    """``groups`` times ``rows`` rows by a matrix k deep and n wide took ``tflops`` of their FLOP."""

    layout: str
    groups: int
    rows: int
    n: int
    k: int
    tflops: float

    @property
    def name(self) -> str:
        return f"{self.layout} {self.groups} × {self.rows}, n {self.n}, k {self.k}"

    @property
    def flop(self) -> float:
        """Of the rows that are asked for, as the table counts them."""
        return 2.0 * self.groups * self.rows * self.n * self.k


GROUPED = (
    Cell("contiguous", 4, 8192, 4096, 7168, 1297),
    Cell("contiguous", 4, 8192, 7168, 2048, 1099),
    Cell("contiguous", 8, 4096, 4096, 7168, 1288),
    Cell("contiguous", 8, 4096, 7168, 2048, 1093),
    Cell("masked", 1, 1024, 4096, 7168, 1233),
    Cell("masked", 1, 1024, 7168, 2048, 925),
    Cell("masked", 2, 512, 4096, 7168, 1040),
    Cell("masked", 2, 512, 7168, 2048, 916),
    Cell("masked", 4, 256, 4096, 7168, 932),
    Cell("masked", 4, 256, 7168, 2048, 815),
)

DENSE = (
    Cell("dense", 1, 64, 2112, 7168, 206),
    Cell("dense", 1, 64, 24576, 1536, 289),
    Cell("dense", 1, 64, 32768, 512, 219),
    Cell("dense", 1, 64, 7168, 16384, 336),
    Cell("dense", 1, 64, 4096, 7168, 287),
    Cell("dense", 1, 64, 7168, 2048, 295),
    Cell("dense", 1, 128, 2112, 7168, 352),
    Cell("dense", 1, 128, 24576, 1536, 535),
    Cell("dense", 1, 128, 32768, 512, 358),
    Cell("dense", 1, 128, 7168, 16384, 645),
    Cell("dense", 1, 128, 4096, 7168, 533),
    Cell("dense", 1, 128, 7168, 2048, 510),
    Cell("dense", 1, 4096, 2112, 7168, 1058),
    Cell("dense", 1, 4096, 24576, 1536, 990),
    Cell("dense", 1, 4096, 32768, 512, 590),
    Cell("dense", 1, 4096, 7168, 16384, 1358),
    Cell("dense", 1, 4096, 4096, 7168, 1304),
    Cell("dense", 1, 4096, 7168, 2048, 1025),
)


def tflops(cell: Cell, roof: Roof, profile: Profile, rates: Rates) -> float:
    """What the table would show: kernel time alone, as its profiler took it, without the launch."""
    tiles_M = np.array([cell.groups * np.ceil(cell.rows / tile.rows) for tile in profile.tiles])
    groups, rows = np.array([float(cell.groups)]), np.array([float(cell.groups * cell.rows)])
    # Scales are left out, as the table's own GB/s leave them out: 3 % of the activations.
    matrix = Matrix(cell.n, cell.k, input_bytes=1, weight_bytes=1, output_bytes=2)
    seconds = gemm_seconds(Rows(tiles_M[:, None], groups, rows), matrix, roof, profile, rates)
    return float(cell.flop / seconds[0] / 1e12)
