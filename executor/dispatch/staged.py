"""Outputs return by the way that the copies of a token took, to where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from executor.dispatch.contract import Arrived, Local
from executor.dispatch.gather import sum_rows
from executor.dispatch.hop import Rows
from executor.dispatch.routing import LayerRouting
from executor.dispatch.stage import Packed, Stage


@dataclass(frozen=True)
class Staged:
    """Copies pass through one stage after the other; sums of their outputs come back stage by stage.

    Attributes:
        stages: in the order of dispatch.
        local: which slots are this rank's.
        sums_for_all: whether the sums go out again, to every rank that got a copy, as after an all-reduce.
    """

    stages: Sequence[Stage]
    local: Local
    sums_for_all: bool = False

    def pack(self, x_TH: Tensor, routing: LayerRouting) -> Packed:
        """See :class:`executor.dispatch.contract.Dispatcher`."""
        return self.stages[0].pack(Rows.of(x_TH, routing))

    def dispatch(self, packed: Packed) -> Arrived:
        """See :class:`executor.dispatch.contract.Dispatcher`."""
        received = self.stages[0].send(packed)
        for stage in self.stages[1:]:
            received = stage.send(stage.pack(received.rows))
        return self.local.arrange(received)

    def combine(self, out_AH: Tensor, arrived: Arrived, shared_TH: Tensor | None) -> Tensor:
        """See :class:`executor.dispatch.contract.Dispatcher`."""
        hops = arrived.hops
        y_BH = sum_rows(out_AH, arrived.copy_A, sum(hops[-1].receives), weight_A=arrived.weight_A)
        for stage, hop in zip(reversed(self.stages), reversed(hops), strict=True):
            y_BH = stage.back(y_BH, hop)
        if self.sums_for_all:
            rows_BH = y_BH
            for stage, hop in zip(self.stages, hops, strict=True):
                rows_BH = stage.transport.there(hop, rows_BH.index_select(0, hop.row_C))
        return y_BH if shared_TH is None else y_BH.add_(shared_TH)
