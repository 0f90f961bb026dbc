"""All experts of a rank in two calls of torch's grouped matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from executor.experts.weights import ExpertWeights, activate_
from executor.plan.errors import PlanError

_ALIGNMENT = 16
"""Bytes of which every row must be a multiple, as torch demands."""


@dataclass(frozen=True)
class GroupedMmExperts:
    """``torch.nn.functional.grouped_mm``: a CUTLASS kernel for bf16 on a GPU, elsewhere torch's own loop.

    Raises:
        PlanError: rows whose bytes are no multiple of 16.
    """

    weights: ExpertWeights

    def __post_init__(self) -> None:
        for name, matrix in (("hidden", self.weights.up_SNH), ("width", self.weights.down_SHF)):
            if matrix.shape[2] * matrix.element_size() % _ALIGNMENT:
                raise PlanError(
                    f"back end grouped_mm needs rows of a multiple of {_ALIGNMENT} bytes; take another",
                    field=f"model.{name}",
                    got=matrix.shape[2],
                )

    def __call__(self, rows_AH: Tensor, count_Z: Tensor) -> Tensor:
        """See :class:`executor.experts.backends.Experts`."""
        if len(rows_AH) == 0:
            return torch.empty_like(rows_AH)
        ends_Z = count_Z.cumsum(0, dtype=torch.int32)
        inner_AN = grouped_mm(rows_AH, self.weights.up_SNH.transpose(1, 2), offs=ends_Z)
        activated_AF = activate_(inner_AN, self.weights.gated)
        return grouped_mm(activated_AF, self.weights.down_SHF.transpose(1, 2), offs=ends_Z)
