"""SGLang (0.5.23): the file of ``--init-expert-location`` that names a map."""

from __future__ import annotations

from typing import Any

from placement.files.read_grid import expert_rows, full_placement
from placement.files.target import Target
from placement.files.values import check_keys
from placement.problem.placement import Placement

_MAP = "physical_to_logical_map"


def sglang(content: dict[str, Any], target: Target) -> Placement:
    """From ``{"physical_to_logical_map": [layers][slots]}``; rows of dense layers are left out.

    Raises:
        PlacementError: it breaks its form, or has neither as many rows as the model has MoE layers nor as it
            has layers.
    """
    rows = check_keys(content, {_MAP: list})[_MAP]
    chosen = target.rows(len(rows), _MAP)
    table = expert_rows([(f"{_MAP}[{index}]", row) for index, row in enumerate(rows)], target.experts)
    return full_placement(
        table[chosen],
        experts=target.experts,
        gpus=target.gpus,
        layers=target.layers,
        field=_MAP,
        system="SGLang",
    )
