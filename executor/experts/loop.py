"""Experts one after the other: the reference back end, and the fastest on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from executor.experts.weights import ExpertWeights, Weights, activate_


@dataclass(frozen=True)
class LoopExperts:
    """Two matrix products for each local slot that has rows, each on a contiguous slice."""

    weights: Weights

    def __call__(self, rows_AH: Tensor, count_Z: Tensor) -> Tensor:
        """See :class:`executor.experts.backends.Experts`."""
        counts = count_Z.tolist()
        out_AH = torch.empty_like(rows_AH)
        # One buffer for all slots: fresh memory would cost page faults for each.
        inner_X = rows_AH.new_empty(max(counts, default=0) * self.weights.rows)
        first = 0
        for slot, count in enumerate(counts):
            if count == 0:
                continue
            rows, (up_NH, down_HF) = slice(first, first + count), self.weights.slot(slot)
            inner_RN = inner_X[: count * len(up_NH)].view(count, len(up_NH))
            torch.mm(rows_AH[rows], up_NH.T, out=inner_RN)
            torch.mm(activate_(inner_RN, self.weights.gated), down_HF.T, out=out_AH[rows])
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
