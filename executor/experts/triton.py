"""All experts of a rank in two launches of our own grouped matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from executor.experts.weights import ExpertWeights
from executor.kernels.device import runs_on
from executor.kernels.grouped_gemm import grouped_gemm
from executor.kernels.schedule import schedule
from executor.kernels.tiles import choose_tiles
from executor.plan.errors import PlanError


@dataclass(frozen=True)
class TritonExperts:
    """Needs a GPU, or Triton's interpreter.

    Raises:
        PlanError: there is neither.
    """

    weights: ExpertWeights

    def __post_init__(self) -> None:
        device = self.weights.up_SNH.device
        if not runs_on(device):
            raise PlanError("back end triton needs a GPU; take loop", field="backend", got=device.type)

    def __call__(self, rows_AH: Tensor, count_Z: Tensor) -> Tensor:
        """See :class:`executor.experts.backends.Experts`."""
        up_SNH, down_SHF, gated = self.weights.up_SNH, self.weights.down_SHF, self.weights.gated
        assignments, (slots, hidden, width) = len(rows_AH), down_SHF.shape
        if assignments == 0:
            return torch.empty_like(rows_AH)
        element_bytes = rows_AH.element_size()
        tiles = choose_tiles(assignments, slots, hidden, width, gated=gated, element_bytes=element_bytes)
        end_Z = count_Z.cumsum(0, dtype=torch.int32)
        groups = schedule(end_Z, assignments, tiles.rows, by_group=tiles.by_group)
        inner_AF = grouped_gemm(rows_AH, up_SNH, groups, tiles.up, activation="swiglu" if gated else "silu")
        return grouped_gemm(inner_AF, down_SHF, groups, tiles.down)
