"""One stage of a dispatch: inside a group, each row goes to the members that lead to its slots.

Axes: B rows before the stage, C copies sent, D copies received, K choices of a row, M members of the group,
S slots of all ranks, X columns of metadata, H hidden width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from executor.dispatch.gather import sum_rows, tally
from executor.dispatch.hop import Hop, Peers, Rows
from executor.dispatch.transport import Transport
from moesim.dispatch.work import Rule, each_gpu, each_slot, every_gpu, from_anchors


@dataclass(frozen=True)
class Picked:
    """The copies that a stage sends, by destination.

    Attributes:
        row_C: the row of each copy.
        meta_CX: what travels with it.
        choices: places for a slot in the metadata of a copy.
        copies_M: int64, copies for each member.
    """

    row_C: Tensor
    meta_CX: Tensor
    choices: int
    copies_M: Tensor


Pick = Callable[[Rows, Tensor, Tensor], Picked]
"""From rows, member_BK (M for nobody) and reached_BM (whether a row has a slot behind a member)."""


def one_for_each_slot(rows: Rows, member_BK: Tensor, reached_BM: Tensor) -> Picked:
    """A copy for each assignment, which then is the only one that the copy knows of."""
    members, member_N = reached_BM.shape[1], member_BK.flatten()
    copies_M = tally(member_N, members + 1)[:members]
    order_C = torch.argsort(member_N, stable=True)[: int(copies_M.sum())]
    meta_N2 = torch.stack([rows.slot_BK, rows.weight_BK.view(torch.int32)], dim=-1).flatten(0, 1)
    return Picked(order_C // rows.choices, meta_N2[order_C], 1, copies_M)


def one_for_each_member(rows: Rows, member_BK: Tensor, reached_BM: Tensor) -> Picked:
    """A copy for each distinct member that leads to one of the row's slots."""
    row_C = reached_BM.T.nonzero()[:, 1]
    return Picked(row_C, rows.meta_BX[row_C], rows.choices, reached_BM.sum(0))


def one_for_everybody(rows: Rows, member_BK: Tensor, reached_BM: Tensor) -> Picked:
    """A copy for each member, wherever the slots are."""
    return one_for_each_member(rows, member_BK, torch.ones_like(reached_BM))


PICKS: dict[Rule, Pick] = {
    each_slot: one_for_each_slot,
    each_gpu: one_for_each_member,
    every_gpu: one_for_everybody,
    from_anchors: one_for_each_member,
}
"""Which copies a stage sends, by the rule that counts them."""


@dataclass(frozen=True)
class Packed:
    """Copies in the order in which they leave.

    Attributes:
        rows: what they were taken from.
        picked: which they are.
        x_CH: the tokens.
        told_MY: int64, what each member is told first: copies, assignments and distinct tokens for it, and
            where pairs are padded the most copies for any other.
        sends: the copies, on the host.
    """

    rows: Rows
    picked: Picked
    x_CH: Tensor
    told_MY: Tensor
    sends: tuple[int, ...]


@dataclass(frozen=True)
class Received:
    """Rows after a stage, and how many assignments and distinct tokens of them the stage led here."""

    rows: Rows
    assignments: int
    tokens: int


@dataclass(frozen=True)
class Stage:
    """Rows to members of a group, and back.

    Attributes:
        peers: the members of the group.
        member_S: int64 [S + 1], the member that leads to each slot; M for a slot that none leads to, and for
            the last entry, which stands for no slot.
        pick: which copies are sent.
        transport: moves them.
        padded: whether all pairs exchange as many copies as the fullest pair of two.
    """

    peers: Peers
    member_S: Tensor
    pick: Pick
    transport: Transport
    padded: bool = False

    def pack(self, rows: Rows) -> Packed:
        """Put the copies into the order of their destinations. No communication."""
        B, members = len(rows.x_BH), len(self.peers)
        member_BK = self.member_S[rows.slot_BK]
        reached_BM = torch.zeros(B, members + 1, dtype=torch.bool, device=member_BK.device)
        reached_BM = reached_BM.scatter_(1, member_BK, True)[:, :members]
        picked = self.pick(rows, member_BK, reached_BM)
        assignments_M = tally(member_BK.flatten(), members + 1)[:members]
        told = [picked.copies_M, assignments_M, reached_BM.sum(0)]
        if self.padded:
            others_M = picked.copies_M.clone()
            others_M[self.peers.me] = 0
            told.append(others_M.max().expand(members))
        x_CH = rows.x_BH.index_select(0, picked.row_C)
        return Packed(rows, picked, x_CH, torch.stack(told, dim=1), tuple(picked.copies_M.tolist()))

    def send(self, packed: Packed) -> Received:
        """Tell every member what comes, then send it."""
        peers, me, picked = self.peers, self.peers.me, packed.picked
        told = self.transport.exchange(peers, packed.told_MY).tolist()
        sends, receives = packed.sends, tuple(count[0] for count in told)
        x_CH, meta_CX, place_C = packed.x_CH, picked.meta_CX, None
        if self.padded:
            fullest = max(count[3] for count in told)
            place_C = _padded_places(sends, me, fullest, x_CH.device)
            sends, receives = (_padded(splits, me, fullest) for splits in (sends, receives))
            x_CH = x_CH.new_zeros(sum(sends), x_CH.shape[1]).index_copy_(0, place_C, x_CH)
            # A padding row has no slot.
            meta_CX = meta_CX.new_full((sum(sends), meta_CX.shape[1]), -1).index_copy_(0, place_C, meta_CX)
        hop = Hop(peers, packed.rows.meta_BX, picked.row_C, place_C, sends, receives, packed.rows.own)
        x_DH = self.transport.there(hop, x_CH)
        meta_DX = self.transport.exchange(peers, meta_CX, sends, receives)
        first = sum(receives[:me])
        own = (first, first + receives[me])
        rows = Rows(x_DH, meta_DX, picked.choices, own, (*packed.rows.hops, hop))
        return Received(rows, sum(count[1] for count in told), sum(count[2] for count in told))

    def back(self, rows_DH: Tensor, hop: Hop) -> Tensor:
        """[B, H]: for each row the sum of what came back for its copies."""
        back_CH = self.transport.back(hop, rows_DH)
        return sum_rows(back_CH, hop.row_C, len(hop.meta_BX), row_A=hop.place_C)


def _padded(splits: Sequence[int], me: int, fullest: int) -> tuple[int, ...]:
    """Splits of pairs of two, all as large as the fullest; what stays here is not padded."""
    return tuple(split if place == me else fullest for place, split in enumerate(splits))


def _padded_places(sends: Sequence[int], me: int, fullest: int, device: torch.device) -> Tensor:
    """int64 [C]: where each copy stands when its split is padded.

    >>> _padded_places((2, 1, 1), 0, 3, torch.device("cpu")).tolist()
    [0, 1, 2, 5]
    """
    sizes = _padded(sends, me, fullest)
    firsts = itertools.accumulate(sizes, initial=0)
    places = [torch.arange(first, first + send) for first, send in zip(firsts, sends, strict=False)]
    return torch.cat(places).to(device)
