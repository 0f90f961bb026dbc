"""What all serving systems hold: as many slots on every GPU, in GPU order, an expert in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.files.values import integer_rows
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement


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


def full_placement(
    slot_expert_LS: NDArray[Any],
    *,
    experts: int,
    gpus: int,
    layers: Sequence[int],
    field: str,
    system: str,
) -> Placement:
    """The placement of which a system's file has only the experts: slot s is on GPU s // (S / G).

    Args:
        field: where the experts stand, for messages.
        system: what messages and the placement's origin call it.

    Raises:
        PlacementError: there are no slots, they do not divide, or a layer lacks an expert.
    """
    slots = slot_expert_LS.shape[1]
    if slots == 0 or slots % gpus:
        raise PlacementError(
            f"{system} holds equally many slots on each of {gpus} GPUs", field=field, got=f"{slots} slots"
        )
    try:
        return Placement(
            slot_expert_LS,
            np.repeat(np.arange(gpus), slots // gpus),
            experts,
            gpus,
            tuple(layers),
            f"a file for {system}",
        )
    except PlacementError as error:
        if error.field == "slot_expert":  # our own form's name for it
            error.field = field
        raise
