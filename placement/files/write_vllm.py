"""vLLM: no release reads a placement; this follows an open proposal, which may change."""

from __future__ import annotations

import json

from placement.files.write_grid import check_full
from placement.problem.placement import Placement

PROPOSAL = "vllm-project/vllm #49572, eplb_config.initial_expert_map_path"


def vllm(placement: Placement, hidden_layers: int | None) -> str:
    """``[MoE layers][slots]`` in JSON, as ``PROPOSAL`` reads it.

    Raises:
        PlacementError: vLLM cannot hold it.
    """
    check_full(placement, "vLLM")
    rows = (json.dumps(row, separators=(",", ":")) for row in placement.slot_expert_LS.tolist())
    return "[" + ",\n ".join(rows) + "]\n"
