"""Moving rows between the ranks of a group, and the groups of a run.

Only ``all_to_all_single`` is used, which NCCL and gloo both have, with uneven splits too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from executor.dispatch.hop import Hop, Peers
from executor.ranks.process_group import TIMEOUT_S


@dataclass(frozen=True)
class Groups:
    """The groups that this rank belongs to.

    Attributes:
        world: all ranks.
        rail: those at the same place in every node.
        node: those of its node.
    """

    rank: int
    world: Peers
    rail: Peers
    node: Peers

    @classmethod
    def make(
        cls, ranks: int, ranks_per_node: int, timeout: timedelta = timedelta(seconds=TIMEOUT_S)
    ) -> Groups:
        """Called by all ranks at once; one rank on its own needs no process group.

        Args:
            ranks, ranks_per_node: rank r stands in node r // ranks_per_node.
            timeout: of collectives of a part of the ranks, as long as that of all of them.
        """
        if ranks == 1:
            alone = Peers(None, (0,), 0)
            return cls(0, alone, alone, alone)
        rank, everyone = dist.get_rank(), range(ranks)
        world = Peers(dist.group.WORLD, tuple(everyone), rank)
        nodes = [everyone[first : first + ranks_per_node] for first in everyone[::ranks_per_node]]
        rails = [everyone[place::ranks_per_node] for place in range(ranks_per_node)]
        return cls(rank, world, *(_mine(each, rank, world, timeout) for each in (rails, nodes)))


def _mine(groups: Sequence[Sequence[int]], rank: int, world: Peers, timeout: timedelta) -> Peers:
    """The one of some groups, which together are all ranks, that holds this rank."""
    (ranks,) = (tuple(group) for group in groups if rank in group)
    me = ranks.index(rank)
    if len(groups) == 1:
        return world
    if len(ranks) == 1:
        return Peers(None, ranks, me)
    lists = [list(group) for group in groups]
    process, _ = dist.new_subgroups_by_enumeration(lists, timeout)  # type: ignore[no-untyped-call]
    return Peers(process, ranks, me)


class Transport:
    """Moves rows. The rows of tokens, unlike counts and what travels with them, pass through two methods.

    Attributes:
        received: copies of tokens that came from other ranks since it was last set to 0.
    """

    def __init__(self) -> None:
        self.received = 0

    def exchange(
        self,
        peers: Peers,
        rows_XY: Tensor,
        sends: Sequence[int] | None = None,
        receives: Sequence[int] | None = None,
    ) -> Tensor:
        """Send rows, sorted by destination; get those from each rank of the group in its order.

        Args:
            sends, receives: rows for and from each rank; by default equally many.
        """
        if peers.process is None:
            return rows_XY
        size = len(rows_XY) if receives is None else sum(receives)
        got_XY = rows_XY.new_empty((size, *rows_XY.shape[1:]))
        dist.all_to_all_single(got_XY, rows_XY, receives, sends, group=peers.process)
        return got_XY

    def there(self, hop: Hop, rows_CH: Tensor) -> Tensor:
        """The copies of a hop, on their way out."""
        self.received += sum(hop.receives) - hop.receives[hop.peers.me]
        return self.exchange(hop.peers, rows_CH, hop.sends, hop.receives)

    def back(self, hop: Hop, rows_DH: Tensor) -> Tensor:
        """One row for each copy of a hop, to where it came from."""
        self.received += sum(hop.sends) - hop.sends[hop.peers.me]
        return self.exchange(hop.peers, rows_DH, hop.receives, hop.sends)
