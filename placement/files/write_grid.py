"""What serving systems can hold: as many slots on every GPU, in GPU order, an expert in each of them."""

from __future__ import annotations

import numpy as np

from placement.problem.errors import PlacementError
from placement.problem.placement import EMPTY, Placement


def check_full(placement: Placement, system: str) -> None:
    """Refuse a placement that a system cannot hold.

    Raises:
        PlacementError: GPUs hold unequal numbers of slots, those of a GPU are not contiguous, or one is
            empty.
    """
    slots, gpus = placement.slots, placement.gpus
    held_G = np.bincount(placement.slot_gpu_S, minlength=gpus)
    fewest = int(held_G.min())
    if fewest != held_G.max():
        raise PlacementError(
            f"{system} holds equally many slots on each of {gpus} GPUs, not {fewest} to {held_G.max()}; "
            f"{-(-slots // gpus) * gpus} slots divide",
            field="slots",
            got=slots,
        )
    expected_S = np.repeat(np.arange(gpus), fewest)
    if not np.array_equal(placement.slot_gpu_S, expected_S):
        slot = int(np.argmax(placement.slot_gpu_S != expected_S))
        raise PlacementError(
            f"{system} counts slots GPU by GPU, so that this one is on GPU {expected_S[slot]}; write the "
            "placement with its slots in that order",
            field=f"slot_gpu[{slot}]",
            got=placement.slot_gpu_S[slot],
        )
    empty_LS = placement.slot_expert_LS == EMPTY
    if empty_LS.any():
        row, slot = (int(index) for index in np.unravel_index(empty_LS.argmax(), empty_LS.shape))
        raise PlacementError(
            f"{system} holds an expert in every slot; name fewer slots, or a solver that fills them all, "
            "such as greedy",
            field=f"slot_expert, layer {placement.layers[row]}, slot {slot}",
            got="empty",
        )
