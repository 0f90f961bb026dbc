"""SGLang (0.5.23): the file of ``--init-expert-location``."""

from __future__ import annotations

import json

import numpy as np

from placement.files.write_grid import check_full
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement


def sglang(placement: Placement, hidden_layers: int | None) -> str:
    """``{"physical_to_logical_map": [all layers][slots]}``, exactly that key: a further one is a TypeError.

    Dense layers have rows too, which nothing reads; they hold the experts in order.

    Raises:
        PlacementError: SGLang cannot hold it, or the number of layers is unknown or too small.
    """
    check_full(placement, "SGLang")
    layers = known_layers(placement, hidden_layers)
    map_LS = np.tile(np.arange(placement.slots) % placement.experts, (layers, 1))
    map_LS[list(placement.layers)] = placement.slot_expert_LS
    rows = ",\n  ".join(json.dumps(row, separators=(",", ":")) for row in map_LS.tolist())
    return f'{{"physical_to_logical_map": [\n  {rows}]}}\n'


def known_layers(placement: Placement, hidden_layers: int | None) -> int:
    """The layers of the whole model, dense ones included.

    Raises:
        PlacementError: unknown, or fewer than the placement has.
    """
    if hidden_layers is None:
        raise PlacementError(
            "SGLang counts all layers of the model, dense ones too, and nothing here tells their number: "
            "name the model",
            field="model",
        )
    if hidden_layers <= placement.layers[-1]:
        raise PlacementError(
            f"the placement has a layer {placement.layers[-1]}, the model only {hidden_layers} layers",
            field="model",
        )
    return hidden_layers
