"""Weights of feed-forward networks, made from a seed so that every replica of an expert is equal.

Axes: S local slots, H hidden width, F inner width of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from executor.plan.plan import MoeShape

SHARED = -1
"""Instead of a logical expert: the expert that every token visits at home."""
GATE = -2
"""Instead of a logical expert: the router."""


@dataclass(frozen=True)
class ExpertWeights:
    """The experts in one rank's slots of one layer: down(silu(gate x) · up x), or down(silu(up x)).

    Attributes:
        up_SNH: N = 2 F rows, those of the gate first, or F where there is none.
        down_SHF: the way back.
        gated: whether there is a gate.
    """

    up_SNH: Tensor
    down_SHF: Tensor
    gated: bool

    @property
    def rows(self) -> int:
        """N, of every expert's first matrix."""
        return self.up_SNH.shape[1]

    def slot(self, slot: int) -> tuple[Tensor, Tensor]:
        """up_NH and down_HF of one slot."""
        return self.up_SNH[slot], self.down_SHF[slot]

    @classmethod
    def random(
        cls,
        shape: MoeShape,
        layer: int,
        experts_S: Sequence[int],
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> ExpertWeights:
        """Normal weights, of variance 1 / inputs, that depend on seed, layer and logical expert alone.

        Args:
            shape: of the model's layers.
            layer: true index in the model.
            experts_S: the logical expert in each local slot; -1 for an empty one, whose weights are 0.
            device: other kinds of device draw other numbers.
        """
        width = shape.width
        stacks = _stacks(len(experts_S), shape.hidden, width, shape.gated, dtype, device)
        for slot, expert in enumerate(experts_S):
            if expert >= 0:
                fill_(stacks.up_SNH[slot], stacks.down_SHF[slot], seed=(seed, layer, expert))
        return stacks

    @classmethod
    def random_shared(
        cls,
        shape: MoeShape,
        layer: int,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> ExpertWeights:
        """The one expert that every token visits at home, made the same way."""
        stacks = _stacks(1, shape.hidden, shape.shared_width, shape.gated, dtype, device)
        fill_(stacks.up_SNH[0], stacks.down_SHF[0], seed=(seed, layer, SHARED))
        return stacks


@dataclass(frozen=True)
class UnequalWeights:
    """As :class:`ExpertWeights`, for experts of several widths: matrices of its own for each slot.

    Attributes:
        slots: up_NH and down_HF of each slot, without rows and columns for an empty one.
        gated: whether there is a gate.
    """

    slots: tuple[tuple[Tensor, Tensor], ...]
    gated: bool

    @property
    def rows(self) -> int:
        """N of the widest expert."""
        return max((len(up_NH) for up_NH, _ in self.slots), default=0)

    def slot(self, slot: int) -> tuple[Tensor, Tensor]:
        """up_NH and down_HF of one slot."""
        return self.slots[slot]

    @classmethod
    def random(cls, shape: MoeShape, layer: int, experts_S: Sequence[int], **made: Any) -> UnequalWeights:
        """What :meth:`ExpertWeights.random` gives each expert where all are as wide."""
        shape_S = [replace(shape, width=shape.width_of(layer, expert), kinds=()) for expert in experts_S]
        slots = (
            ExpertWeights.random(one, layer, [expert], **made).slot(0)
            for one, expert in zip(shape_S, experts_S, strict=True)
        )
        return cls(tuple(slots), shape.gated)


Weights = ExpertWeights | UnequalWeights


def fill_(*matrices_NK: Tensor, seed: tuple[int, int, int]) -> None:
    """Fill matrices of K inputs in place, from (seed, layer, logical expert or ``SHARED`` or ``GATE``)."""
    run, layer, expert = seed
    (state,) = np.random.SeedSequence([run, layer, expert - GATE]).generate_state(1, np.uint64)
    generator = torch.Generator(matrices_NK[0].device)
    # A generator takes seeds of either sign below 2^63.
    generator.manual_seed(int(state) >> 1)
    for matrix_NK in matrices_NK:
        matrix_NK.normal_(std=matrix_NK.shape[1] ** -0.5, generator=generator)


def _stacks(
    slots: int, hidden: int, width: int, gated: bool, dtype: torch.dtype, device: torch.device | str
) -> ExpertWeights:
    up = 2 * width if gated else width
    return ExpertWeights(
        torch.zeros(slots, up, hidden, dtype=dtype, device=device),
        torch.zeros(slots, hidden, width, dtype=dtype, device=device),
        gated,
    )


def activate_(inner_AN: Tensor, gated: bool) -> Tensor:
    """silu(gate) · up in the place of the gate, or silu(up) in its own. Returns the F columns it wrote."""
    if not gated:
        return torch.nn.functional.silu(inner_AN, inplace=True)
    width = inner_AN.shape[1] // 2
    gate_AF = torch.nn.functional.silu(inner_AN[:, :width], inplace=True)
    return gate_AF.mul_(inner_AN[:, width:])
