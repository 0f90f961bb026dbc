"""Sending tokens to the ranks of their slots and back, by the way that their copies took.

Axes: T tokens that a rank holds, B rows before a stage, C copies of tokens that have arrived at it, K choices
that come with a copy, A assignments that it serves, S slots of all ranks, Z its local slots, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from executor.dispatch.gather import sum_rows, tally
from executor.dispatch.hop import Hop, Rows
from executor.dispatch.routing import LayerRouting
from executor.dispatch.stage import Packed, Received, Stage


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


@dataclass(frozen=True)
class Dispatcher:
    """One dispatch mode on one rank: copies pass through one stage after the other, and sums come back so.

    Attributes:
        stages: in the order of dispatch.
        local: which slots are this rank's.
        sums_for_all: whether the sums go out again, to every rank that got a copy, as after an all-reduce.
    """

    stages: Sequence[Stage]
    local: Local
    sums_for_all: bool = False

    def pack(self, x_TH: Tensor, routing: LayerRouting) -> Packed:
        """Order what this rank sends: the part without communication, which belongs to the router."""
        return self.stages[0].pack(Rows.of(x_TH, routing))

    def dispatch(self, packed: Packed) -> Arrived:
        """Exchange counts, then rows; put what arrived into expert order."""
        received = self.stages[0].send(packed)
        for stage in self.stages[1:]:
            received = stage.send(stage.pack(received.rows))
        return self.local.arrange(received)

    def combine(self, out_AH: Tensor, arrived: Arrived, shared_TH: Tensor | None) -> Tensor:
        """Send the weighted outputs back.

        Args:
            out_AH: the experts' outputs, in the order of ``arrived.rows_AH``.
            arrived: of the same layer.
            shared_TH: the shared expert's output for the tokens that were here before the layer.

        Returns:
            The layer's output for each token that this rank holds after the layer, by token number.
        """
        hops = arrived.hops
        y_BH = sum_rows(out_AH, arrived.copy_A, sum(hops[-1].receives), weight_A=arrived.weight_A)
        for stage, hop in zip(reversed(self.stages), reversed(hops), strict=True):
            y_BH = stage.back(y_BH, hop)
        if self.sums_for_all:
            rows_BH = y_BH
            for stage, hop in zip(self.stages, hops, strict=True):
                rows_BH = stage.transport.there(hop, rows_BH.index_select(0, hop.row_C))
        return y_BH if shared_TH is None else y_BH.add_(shared_TH)
