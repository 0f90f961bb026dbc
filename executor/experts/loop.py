"""Experts one after the other: the reference back end, and the fastest on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from executor.experts.weights import ExpertWeights, activate_


@dataclass(frozen=True)
class LoopExperts:
    """Two matrix products for each local slot that has rows, each on a contiguous slice."""

    weights: ExpertWeights

    def __call__(self, rows_AH: Tensor, count_Z: Tensor) -> Tensor:
        """See :class:`executor.experts.backends.Experts`."""
        up_SNH, down_SHF = self.weights.up_SNH, self.weights.down_SHF
        counts = count_Z.tolist()
        out_AH = torch.empty_like(rows_AH)
        # One buffer for all slots: fresh memory would cost page faults for each.
        inner_XN = rows_AH.new_empty(max(counts, default=0), up_SNH.shape[1])
        first = 0
        for slot, count in enumerate(counts):
            if count == 0:
                continue
            rows = slice(first, first + count)
            inner_RN = torch.mm(rows_AH[rows], up_SNH[slot].T, out=inner_XN[:count])
            torch.mm(activate_(inner_RN, self.weights.gated), down_SHF[slot].T, out=out_AH[rows])
            first += count
        return out_AH


@dataclass(frozen=True)
class SharedExpert:
    """The expert that every token visits where it is; its weights are those of a single slot."""

    weights: ExpertWeights

    def __call__(self, x_TH: Tensor) -> Tensor:
        """A new tensor [T, H]."""
        inner_TN = x_TH @ self.weights.up_SNH[0].T
        return activate_(inner_TN, self.weights.gated) @ self.weights.down_SHF[0].T
