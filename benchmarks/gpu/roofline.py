"""What a GPU can do at best, measured, and the least time that a case needs there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import triton.testing

from benchmarks.gpu.cases import Case

_WIDTH = 8192
_COPIED = 1 << 30


@dataclass(frozen=True)
class Peaks:
    """Of the GPU at hand.

    Attributes:
        flops: FLOP per second of a square bf16 GEMM.
        bandwidth: bytes per second of a copy, read and written.
    """

    flops: float
    bandwidth: float

    @classmethod
    def measured(cls) -> Peaks:
        """Random numbers: zeros multiply faster than any data would."""
        square = torch.randn(_WIDTH, _WIDTH, device="cuda", dtype=torch.bfloat16)
        product, values = torch.empty_like(square), torch.empty(_COPIED, dtype=torch.int8, device="cuda")
        copy = torch.empty_like(values)
        return cls(
            2 * _WIDTH**3 / median_s(lambda: torch.mm(square, square, out=product)),
            2 * _COPIED / median_s(lambda: copy.copy_(values)),
        )


@dataclass(frozen=True)
class Roof:
    """What a case must do at least, whatever the kernels.

    Attributes:
        flops: two for each weight of an assignment's expert.
        bytes_: each expert's weights once if it got a token; tokens read and written once.
    """

    flops: float
    bytes_: float

    @classmethod
    def of(cls, case: Case, element_bytes: int = 2) -> Roof:
        """Of a batch as it is routed."""
        shape = case.shape
        busy = len(np.unique(case.routing()))
        rows = 2 * case.tokens * shape.hidden
        return cls(
            2.0 * case.assignments * shape.weights, (busy * shape.weights + rows) * float(element_bytes)
        )

    def bound(self, peaks: Peaks) -> str:
        """``compute`` or ``memory``, whichever takes longer."""
        return "compute" if self.flops / peaks.flops > self.bytes_ / peaks.bandwidth else "memory"

    def reached(self, seconds: float, peaks: Peaks) -> float:
        """The share of the peak that binds."""
        return max(self.flops / peaks.flops, self.bytes_ / peaks.bandwidth) / seconds


def median_s(call: Callable[[], object], *, graph: bool = False) -> float:
    """Seconds of a call after the L2 cache was emptied, by the GPU's own clock.

    Args:
        graph: replay the call as a CUDA graph, as servers do in decode; how fast Python launches kernels
            would be measured otherwise.
    """
    call()
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            call()
        call = captured.replay
    median: float = triton.testing.do_bench(call, warmup=20, rep=100, return_mode="median")
    return median / 1e3
