"""Run with TRITON_INTERPRET=1: the grouped matrix product against a loop over rows, at awkward sizes."""

from __future__ import annotations

import itertools

import torch

from executor.experts.catalogue import BACKENDS
from executor.experts.weights import ExpertWeights
from executor.kernels.grouped_gemm import grouped_gemm
from executor.plan import MoeShape

# The interpreter keeps bf16 as integers and multiplies those, so bf16 is for a GPU to check.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2}
SIZES = [
    ([1, 0, 6], 5, 7),
    ([70, 0, 3], 65, 33),
    ([0, 0], 4, 4),
    ([64, 64], 64, 32),
    ([0, 123, 0], 3, 40),
]


def products() -> int:
    """How many were checked, rows in place and gathered."""
    done = 0
    torch.manual_seed(0)
    for (dtype, tolerance), (counts, columns, depth) in itertools.product(TOLERANCE.items(), SIZES):
        A, slots = sum(counts), [slot for slot, count in enumerate(counts) for _ in range(count)]
        x_XK = torch.randn(A + 3, depth, dtype=dtype)
        weight_ZNK = torch.randn(len(counts), columns, depth, dtype=dtype)
        row_A = torch.randint(0, A + 3, (A,))
        given = [(x_XK[:A], None)] if dtype == torch.float16 else [(x_XK[:A], None), (x_XK, row_A)]
        for rows_XK, rows_A in given:
            out_AN = grouped_gemm(rows_XK, weight_ZNK, torch.tensor(counts), rows_A)
            assert (out_AN.shape, out_AN.dtype) == ((A, columns), dtype)
            for a, slot in enumerate(slots):
                row_K = rows_XK[a if rows_A is None else int(rows_A[a])]
                wanted_N = weight_ZNK[slot].double() @ row_K.double()
                torch.testing.assert_close(out_AN[a].double(), wanted_N, rtol=tolerance, atol=tolerance)
            done += 1
    return done


def layers() -> int:
    """How many times the back end was compared with the loop over experts."""
    for gated in (True, False):
        shape = MoeShape("m", 24, 10, gated, 3, 1, 0, (0,))
        weights = ExpertWeights.random(shape, 0, range(3), seed=1)
        counts_Z, rows_AH = torch.tensor([65, 0, 2]), torch.randn(67, 24)
        wanted_AH = BACKENDS["loop"](weights)(rows_AH, counts_Z)
        torch.testing.assert_close(
            BACKENDS["triton"](weights)(rows_AH, counts_Z), wanted_AH, rtol=0, atol=1e-5
        )
    return 2


if __name__ == "__main__":
    print(products(), "products", layers(), "layers")
