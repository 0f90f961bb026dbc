"""All experts of a rank in two launches of our own grouped matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import triton
from torch import Tensor

from executor.errors import PlanError
from executor.experts.weights import ExpertWeights, activate_
from executor.kernels.grouped_gemm import grouped_gemm


@dataclass(frozen=True)
class TritonExperts:
    """Needs a GPU, or Triton's interpreter.

    Raises:
        PlanError: there is neither.
    """

    weights: ExpertWeights

    def __post_init__(self) -> None:
        device = self.weights.up_SNH.device.type
        if device == "cpu" and not triton.knobs.runtime.interpret:
            raise PlanError("back end triton needs a GPU; take loop", field="backend", got=device)

    def __call__(self, rows_AH: Tensor, count_Z: Tensor) -> Tensor:
        """See :class:`executor.experts.catalogue.Experts`."""
        inner_AN = grouped_gemm(rows_AH, self.weights.up_SNH, count_Z)
        return grouped_gemm(activate_(inner_AN, self.weights.gated), self.weights.down_SHF, count_Z)
