"""vLLM: no release reads a placement; this follows an open proposal, which may change."""

from __future__ import annotations

from typing import Any

from placement.files.grid import check_full, expert_rows, full_placement
from placement.files.target import Target
from placement.files.text import compact_json
from placement.problem.placement import Placement

SYSTEM = "vLLM"
PROPOSAL = "vllm-project/vllm #49572, eplb_config.initial_expert_map_path"


def read(content: list[Any], target: Target) -> Placement:
    """From ``[MoE layers][slots]``.

    Raises:
        PlacementError: it breaks its form, or has not as many rows as the model has MoE layers.
    """
    target.check_moe_rows(len(content), "")
    table = expert_rows([(f"[{index}]", row) for index, row in enumerate(content)], target.experts)
    return full_placement(table, target, "", SYSTEM)


def write(placement: Placement, hidden_layers: int | None) -> str:
    """``[MoE layers][slots]`` in JSON, as ``PROPOSAL`` reads it.

    Raises:
        PlacementError: vLLM cannot hold it.
    """
    check_full(placement, SYSTEM)
    return "[" + ",\n ".join(map(compact_json, placement.slot_expert_LS.tolist())) + "]\n"
