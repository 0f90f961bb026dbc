"""From a mode's record to what sends tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from executor.dispatch.dispatcher import Dispatcher, Local
from executor.dispatch.hop import Peers
from executor.dispatch.moving import Moving
from executor.dispatch.stage import PICKS, Pick, Stage
from executor.dispatch.transport import Groups, Transport
from executor.plan.errors import PlanError
from moesim.dispatch.modes import MODES


def dispatcher(
    mode: str,
    groups: Groups,
    slot_gpu_S: npt.NDArray[np.int32],
    transport: Transport,
    *,
    padded: bool = False,
    device: torch.device | str = "cpu",
) -> Dispatcher:
    """What sends tokens to slots and back in a mode of ``moesim.dispatch.modes.MODES``; serves every layer.

    Args:
        groups: made by all ranks at once.
        slot_gpu_S: the rank of each slot.
        transport: moves the rows.
        padded: whether all pairs exchange as many copies as the fullest pair of two.
        device: of the rows.

    Raises:
        PlanError: the mode can only be simulated.
    """

    def stage(peers: Peers, pick: Pick) -> Stage:
        """Slot → member: on a rail the one in the slot's node, elsewhere the slot's own rank."""
        leads_to = {rank: place for place, rank in enumerate(peers.ranks)}
        ranks = slot_gpu_S
        if peers is groups.rail and peers is not groups.world:
            per_node = len(groups.node)
            ranks = slot_gpu_S // per_node * per_node + groups.rank % per_node
        members = [leads_to.get(int(rank), len(peers)) for rank in ranks]
        return Stage(peers, torch.tensor([*members, len(peers)], device=device), pick, transport, padded)

    record, local = MODES[mode], Local.of(slot_gpu_S, groups.rank, device)
    if record.count not in PICKS:
        raise PlanError("has no way of picking copies: it can only be simulated", field="dispatch", got=mode)
    ways = [groups.world]
    if record.relayed:
        # A hop inside a group of one would move nothing.
        ways = [peers for peers in (groups.rail, groups.node) if len(peers) > 1] or [groups.node]
    stages = [stage(way, PICKS[record.count]) for way in ways]
    if record.returns == "anchor":
        return Moving(stages, local)
    return Dispatcher(stages, local, sums_for_all=record.returns == "everywhere")
