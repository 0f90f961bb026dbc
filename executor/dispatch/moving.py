"""Outputs go to the anchor of a token, which does not return but stays where its heaviest expert was.

Axes: T tokens that are here before the layer, C copies that arrive, A assignments served here, I tokens that
go on from here as they are, B = C + I rows that leave in combine, U tokens that are here after the layer,
H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from executor.dispatch.dispatcher import Arrived, Dispatcher
from executor.dispatch.gather import sum_rows, tally
from executor.dispatch.hop import Hop, Rows
from executor.dispatch.routing import LayerRouting
from executor.dispatch.stage import Packed


class Moving(Dispatcher):
    """Dispatch in one stage from where a token is; its outputs are summed on the rank where it goes.

    Each copy carries that rank and the token's number, by which the outputs find each other there.
    """

    def pack(self, x_TH: Tensor, routing: LayerRouting) -> Packed:
        """See :class:`executor.dispatch.dispatcher.Dispatcher`."""
        return self.stages[0].pack(Rows.of(x_TH, routing, routing.goes_T, routing.token_T))

    def combine(self, out_AH: Tensor, arrived: Arrived, shared_TH: Tensor | None) -> Tensor:
        """See :class:`executor.dispatch.dispatcher.Dispatcher`."""
        (stage,), meta_CX = self.stages, arrived.meta_CX
        peers, transport = stage.peers, stage.transport
        (hop,) = arrived.hops
        alone_I, at_T = _alone(hop, len(meta_CX), shared_TH is not None)
        goes_B, token_B = torch.cat([meta_CX[:, -2:], hop.meta_BX[alone_I, -2:]]).long().unbind(1)
        order_B = torch.argsort(goes_B, stable=True)
        place_B = torch.argsort(order_B)
        rows_BH = sum_rows(out_AH, place_B[arrived.copy_A], len(order_B), weight_A=arrived.weight_A)
        if shared_TH is not None:
            rows_BH.index_add_(0, place_B[at_T], shared_TH)
        sends_M = tally(goes_B, len(peers))
        receives_M = transport.exchange(peers, sends_M)
        sends, receives = tuple(sends_M.tolist()), tuple(receives_M.tolist())
        # These rows do not come back, so that nothing has to be known of them.
        onward = Hop(peers, meta_CX[:0], order_B, None, sends, receives, (0, len(order_B)))
        y_CH = transport.there(onward, rows_BH)
        token_C = transport.exchange(peers, token_B[order_B], sends, receives)
        token_U, key_C = torch.unique(token_C, return_inverse=True)
        return sum_rows(y_CH, key_C, len(token_U))


def _alone(hop: Hop, copies: int, shared: bool) -> tuple[Tensor, Tensor]:
    """(alone_I, at_T): tokens that leave in a row of their own, and the row that holds each token's own part.

    Rows up to ``copies`` are those of the copies that arrived, then come the tokens' own. A token goes alone
    where no slot serves it; with a shared expert also where none does here, for that output must go along.
    """
    me = hop.peers.me
    T, sent = len(hop.meta_BX), sum(hop.sends[:me])
    here_O = hop.row_C[sent : sent + hop.sends[me]]
    at_T = torch.full((T,), -1, device=here_O.device)
    first = sum(hop.receives[:me])
    at_T[here_O] = torch.arange(first, first + len(here_O), device=here_O.device)
    alone_T = at_T < 0
    if not shared:
        alone_T[hop.row_C] = False
    alone_I = alone_T.nonzero()[:, 0]
    at_T[alone_I] = torch.arange(copies, copies + len(alone_I), device=here_O.device)
    return alone_I, at_T
