"""SGLang (0.5.23): the file of ``--init-expert-location`` that names a map."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from placement.files.grid import check_full, expert_rows, full_placement
from placement.files.target import Target
from placement.files.text import compact_json
from placement.files.values import check_keys
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement

SYSTEM, KEY = "SGLang", "physical_to_logical_map"


def read(content: dict[str, Any], target: Target) -> Placement:
    """From ``{"physical_to_logical_map": [layers][slots]}``; rows of dense layers are left out.

    Raises:
        PlacementError: it breaks its form, or has neither as many rows as the model has MoE layers nor as it
            has layers.
    """
    rows = check_keys(content, {KEY: list})[KEY]
    chosen = target.rows(len(rows), KEY)
    table = expert_rows([(f"{KEY}[{index}]", row) for index, row in enumerate(rows)], target.experts)
    return full_placement(table[chosen], target, KEY, SYSTEM)


def load_with(placement: Placement, file: str) -> str:
    """What a server is started with to read the file."""
    redundant = placement.slots - placement.experts
    return (
        f"python -m sglang.launch_server --model-path MODEL --ep-size {placement.gpus} "
        f"--ep-num-redundant-experts {redundant} --init-expert-location {shlex.quote(file)}"
    )


def write(placement: Placement, hidden_layers: int | None) -> str:
    """``{"physical_to_logical_map": [all layers][slots]}``, exactly that key: a further one is a TypeError.

    Dense layers have rows too, which nothing reads; they hold the experts in order.

    Raises:
        PlacementError: SGLang cannot hold it, or the number of layers is unknown or too small.
    """
    check_full(placement, SYSTEM)
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
    map_LS = np.tile(np.arange(placement.slots) % placement.experts, (hidden_layers, 1))
    map_LS[list(placement.layers)] = placement.slot_expert_LS
    rows = ",\n  ".join(map(compact_json, map_LS.tolist()))
    return f'{{"{KEY}": [\n  {rows}]}}\n'
