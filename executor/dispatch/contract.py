"""Sending tokens to the ranks of their slots and back: what is handed on, and what every mode must do.

Axes: T tokens that a rank holds, C copies of tokens that have arrived at it, K choices that come with a copy,
A assignments that it serves, S slots of all ranks, Z its local slots, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from executor.dispatch.gather import tally
from executor.dispatch.hop import Hop
from executor.dispatch.routing import LayerRouting
from executor.dispatch.stage import Packed, Received


@dataclass(frozen=True)
class Arrived:
    """The assignments that a rank serves, in expert order, and how to send their outputs back.

    Example: two copies arrived; local slot 0 is chosen by the second, slot 1 by both. Then ``copy_A`` is
    [1, 0, 1] (slot 0: copy 1; slot 1: copies 0 and 1), ``count_Z`` [1, 2] and ``tokens`` 2. Combine returns
    weight · out[1] for copy 0, and for copy 1 the weighted sum of out[0] and out[2].

    Attributes:
        rows_AH: the token of each assignment, sorted by local slot.
        count_Z: int64, assignments of each local slot.
        copy_A: the arrived copy that each row was taken from.
        weight_A: float32 gate weights.
        tokens: distinct tokens among the assignments.
        meta_CX: what travelled with the copies.
        hops: the way that they came, first hop first.
    """

    rows_AH: Tensor
    count_Z: Tensor
    copy_A: Tensor
    weight_A: Tensor
    tokens: int
    meta_CX: Tensor
    hops: tuple[Hop, ...]


class Dispatcher(Protocol):
    """One dispatch mode on one rank."""

    def pack(self, x_TH: Tensor, routing: LayerRouting) -> Packed:
        """Order what this rank sends: the part without communication, which belongs to the router."""

    def dispatch(self, packed: Packed) -> Arrived:
        """Exchange counts, then rows; put what arrived into expert order."""

    def combine(self, out_AH: Tensor, arrived: Arrived, shared_TH: Tensor | None) -> Tensor:
        """Send the weighted outputs back.

        Args:
            out_AH: the experts' outputs, in the order of ``arrived.rows_AH``.
            arrived: of the same layer.
            shared_TH: the shared expert's output for the tokens that were here before the layer.

        Returns:
            The layer's output for each token that this rank holds after the layer, by token number.
        """


@dataclass(frozen=True)
class Local:
    """Which slots are this rank's.

    Attributes:
        place_S: int64 [S + 1], the place among the local slots; Z for those of other ranks, and for the last
            entry, which stands for no slot.
        slots: Z.
    """

    place_S: Tensor
    slots: int

    @classmethod
    def of(cls, slot_gpu_S: npt.NDArray[np.int32], rank: int, device: torch.device | str) -> Local:
        """Local slots stand in the order of all slots."""
        mine_S = slot_gpu_S == rank
        slots = int(mine_S.sum())
        place_S = np.where(mine_S, np.cumsum(mine_S) - 1, slots)
        return cls(torch.from_numpy(np.append(place_S, slots)).to(device), slots)

    def arrange(self, received: Received) -> Arrived:
        """Put what arrived into expert order."""
        rows = received.rows
        place_N = self.place_S[rows.slot_BK].flatten()
        # What is not served here sorts behind the last local slot.
        order_A = torch.argsort(place_N, stable=True)[: received.assignments]
        copy_A = order_A // rows.choices
        return Arrived(
            rows.x_BH.index_select(0, copy_A),
            tally(place_N, self.slots + 1)[: self.slots],
            copy_A,
            rows.weight_BK.flatten()[order_A],
            received.tokens,
            rows.meta_BX,
            rows.hops,
        )
