"""TensorRT-LLM: the file of its expert-parallel load balancer (``examples/wide_ep``)."""

from __future__ import annotations

from typing import Any

from placement.files.read_grid import expert_rows, full_placement
from placement.files.target import Target
from placement.files.values import check_keys
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement

_ASSIGNMENTS = "initial_global_assignments"
_KEYS = {"num_slots": int, _ASSIGNMENTS: dict, "layer_updates_per_iter": int}


def trtllm(content: dict[str, Any], target: Target) -> Placement:
    """From the experts of each slot by the layer's index in the whole model.

    ``layer_updates_per_iter``, by default 0, says how a server goes on from there; nothing here does.

    Raises:
        PlacementError: it breaks its form.
    """
    # The default is the system's.
    found = check_keys({"layer_updates_per_iter": 0, **content}, _KEYS)
    slots, assignments = found["num_slots"], found[_ASSIGNMENTS]
    if not assignments:
        raise PlacementError("names no layer", field=_ASSIGNMENTS)
    for layer, row in assignments.items():
        if type(layer) is not int:
            raise PlacementError(
                "keys must be layers of the model, as numbers", field=_ASSIGNMENTS, got=layer
            )
        if type(row) is list and len(row) != slots:
            raise PlacementError(
                f"must have {slots} slots, as num_slots says", field=f"{_ASSIGNMENTS}[{layer}]", got=len(row)
            )
    layers = sorted(assignments)
    return full_placement(
        expert_rows([(f"{_ASSIGNMENTS}[{layer}]", assignments[layer]) for layer in layers], target.experts),
        experts=target.experts,
        gpus=target.gpus,
        layers=layers,
        field=_ASSIGNMENTS,
        system="TensorRT-LLM",
    )
