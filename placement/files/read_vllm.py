"""vLLM: no release reads a placement; this is the form of the proposal that ``placement/export`` writes."""

from __future__ import annotations

from typing import Any

from placement.files.read_grid import expert_rows, full_placement
from placement.files.target import Target
from placement.problem.placement import Placement


def vllm(content: list[Any], target: Target) -> Placement:
    """From ``[MoE layers][slots]``.

    Raises:
        PlacementError: it breaks its form, or has not as many rows as the model has MoE layers.
    """
    target.check_moe_rows(len(content), "")
    return full_placement(
        expert_rows([(f"[{index}]", row) for index, row in enumerate(content)], target.experts),
        experts=target.experts,
        gpus=target.gpus,
        layers=target.layers,
        field="",
        system="vLLM",
    )
