"""A MoE layer as a CUDA graph: one launch for all of its kernels, for batches of a few tokens.

Axes: as in :mod:`executor.kernels.layer`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from executor.kernels.layer import moe_layer

_WARM_UP = 3
"""Calls before the capture: they compile, and take the memory that is needed."""


class GraphedLayer:
    """``moe_layer`` for up to so many tokens, captured once and then replayed.

        layer = GraphedLayer(64, 8, gate_up_proj, down_proj)
        y = layer(x, ids, weights)

    Args:
        tokens: the most in one call; fewer are filled up with tokens that nobody serves.
        choices: K.
        up_SNH, down_SHF, gated, factors: as of ``moe_layer``; the graph reads the weights where they are,
            and keeps them. With factors x is bfloat16.

    Raises:
        ValueError: the weights are not on a GPU, or do not fit each other.
    """

    def __init__(
        self,
        tokens: int,
        choices: int,
        up_SNH: Tensor,
        down_SHF: Tensor,
        *,
        gated: bool = True,
        factors: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        device = down_SHF.device
        if device.type != "cuda":
            raise ValueError(f"a graph needs weights on a GPU (got {device})")
        dtype = up_SNH.dtype if factors is None else torch.bfloat16
        self.x_TH = torch.zeros(tokens, up_SNH.shape[-1], dtype=dtype, device=device)
        self.ids_TK = torch.full((tokens, choices), -1, dtype=torch.int64, device=device)
        self.weight_TK = torch.zeros(tokens, choices, device=device)
        self.weights = (up_SNH, down_SHF, factors)
        inputs = (self.x_TH, self.ids_TK, self.weight_TK, up_SNH, down_SHF)
        layer = partial(moe_layer, *inputs, gated=gated, factors=factors)
        self.graph = torch.cuda.CUDAGraph()
        # A capture must not begin on the stream that others use; torch's own for it is on one device only.
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP):
                    layer()
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self.graph, stream=aside):
                self.y_TH = layer()

    @torch.no_grad()
    def __call__(self, x_TH: Tensor, ids_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """[T, H], which the next call overwrites.

        Raises:
            ValueError: more tokens than the graph was captured for, or of other widths.
        """
        tokens, most = len(x_TH), len(self.x_TH)
        if tokens > most:
            raise ValueError(f"the graph holds at most {most} tokens (got {tokens})")
        for given, held in ((x_TH, self.x_TH), (ids_TK, self.ids_TK), (weight_TK, self.weight_TK)):
            wanted = (tokens, held.shape[1])
            # A copy would spread a single column over all.
            if given.shape != wanted:
                raise ValueError(
                    f"the graph takes a tensor of shape {wanted} here (got {tuple(given.shape)})"
                )
            held[:tokens].copy_(given)
        self.ids_TK[tokens:].fill_(-1)
        self.graph.replay()
        return self.y_TH[:tokens]
