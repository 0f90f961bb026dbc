"""Rows of tokens on one rank, and how a hop spreads them over a group of ranks.

Axes: B rows that a rank has before a hop, C copies that it sends, D copies that it receives, K choices that
come with a row, X columns of metadata, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from executor.dispatch.routing import LayerRouting


@dataclass(frozen=True)
class Peers:
    """Ranks that exchange rows.

    Attributes:
        process: of torch.distributed; None for a rank on its own.
        ranks: their numbers in the run, ascending.
        me: this rank's place among them.
    """

    process: dist.ProcessGroup | None
    ranks: tuple[int, ...]
    me: int

    def __len__(self) -> int:
        return len(self.ranks)


@dataclass(frozen=True)
class Hop:
    """How one hop spread the rows of a rank: what combine needs to find the way back.

    Example: rank 0 of two has three rows. Rows 0 and 2 have a slot on rank 0 itself, rows 0 and 1 on rank 1,
    and rank 1 has one row for rank 0: ``row_C`` is [0, 2, 0, 1], ``sends`` [2, 2], ``receives`` [2, 1].

    Attributes:
        peers: who takes part.
        meta_BX: what was known of the rows.
        row_C: the row that each copy was taken from, by destination.
        place_C: where each copy stands among the rows sent, where they were padded; else None.
        sends, receives: rows for and from each rank of the group, padding included.
        own: rows from own[0] up to own[1] are of this rank's tokens, the others are relayed.
    """

    peers: Peers
    meta_BX: Tensor
    row_C: Tensor
    place_C: Tensor | None
    sends: tuple[int, ...]
    receives: tuple[int, ...]
    own: tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """Rows on a rank, each with what was chosen for its token.

    Attributes:
        x_BH: the tokens.
        meta_BX: int32: K slots (-1 for none), the bits of K float32 weights, and what else a mode sends.
        choices: K.
        own: rows from own[0] up to own[1] are of this rank's tokens, the others came through a hop.
        hops: that the rows have behind them.
    """

    x_BH: Tensor
    meta_BX: Tensor
    choices: int
    own: tuple[int, int]
    hops: tuple[Hop, ...] = ()

    @classmethod
    def of(cls, x_TH: Tensor, routing: LayerRouting, *more_T: Tensor) -> Rows:
        """A rank's own tokens before the first hop; ``more_T`` are further int32 columns."""
        tokens, choices = routing.slot_TK.shape
        bits_TK = routing.weight_TK.view(torch.int32)
        columns = [routing.slot_TK, bits_TK, *(column_T[:, None] for column_T in more_T)]
        return cls(x_TH, torch.cat(columns, dim=1), choices, (0, tokens))

    @property
    def slot_BK(self) -> Tensor:
        """int32: the slots that serve each row's token; -1 for none."""
        return self.meta_BX[:, : self.choices]

    @property
    def weight_BK(self) -> Tensor:
        """float32: their gate weights."""
        return self.meta_BX[:, self.choices : 2 * self.choices].view(torch.float32)
