"""What all serving systems hold: as many slots on every GPU, in GPU order, an expert in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.files.target import Target
from placement.files.values import integer_rows
from placement.problem.errors import PlacementError
from placement.problem.placement import EMPTY, Placement


def expert_rows(rows: Sequence[tuple[str, object]], experts: int) -> NDArray[Any]:
    """int32 [rows, slots] from equally long lists of experts, each with where it stands.

    >>> expert_rows([("map[0]", [0, 1, 0]), ("map[1]", [1, 0, 1])], experts=2)
    array([[0, 1, 0],
           [1, 0, 1]], dtype=int32)

    Raises:
        PlacementError: a row is no list of experts, or not as long as the first.
    """
    table = integer_rows(rows)
    bad = (table < 0) | (table >= experts)
    if bad.any():
        row, slot = (int(index) for index in np.unravel_index(bad.argmax(), bad.shape))
        raise PlacementError(
            f"must be an expert from 0 to {experts - 1}",
            field=f"{rows[row][0]}[{slot}]",
            got=table[row, slot],
        )
    return table


def full_placement(slot_expert_LS: NDArray[Any], target: Target, field: str, system: str) -> Placement:
    """The placement of which a system's file has only the experts: slot s is on GPU s // (S / G).

    Args:
        field: where the experts stand, for messages.
        system: what messages and the placement's origin call it.

    Raises:
        PlacementError: there are no slots, they do not divide, or a layer lacks an expert.
    """
    slots, gpus = slot_expert_LS.shape[1], target.gpus
    if slots == 0 or slots % gpus:
        raise PlacementError(
            f"{system} holds equally many slots on each of {gpus} GPUs", field=field, got=f"{slots} slots"
        )
    slot_gpu_S = np.repeat(np.arange(gpus, dtype=np.int32), slots // gpus)
    try:
        return Placement(
            slot_expert_LS, slot_gpu_S, target.experts, gpus, target.layers, f"a file for {system}"
        )
    except PlacementError as error:
        if error.field == "slot_expert":  # our own form's name for it
            error.field = field
        raise


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
