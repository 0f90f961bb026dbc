"""vllm-ascend: the file of ``expert_map_path``."""

from __future__ import annotations

import json
from typing import Any

from placement.files.write_grid import check_full
from placement.problem.placement import Placement


def vllm_ascend(placement: Placement, hidden_layers: int | None) -> str:
    """``moe_layer_count`` and ``layer_list``: of each layer, of each device, its experts in slot order.

    Layers are counted over MoE layers alone, from 0. All lists together are read as one rectangular
    tensor, so that devices with unequal numbers of slots do not fit.

    Raises:
        PlacementError: vllm-ascend cannot hold it.
    """
    check_full(placement, "vllm-ascend")
    layers = ",\n  ".join(
        json.dumps(_layer(row, experts, placement.gpus), separators=(",", ":"))
        for row, experts in enumerate(placement.slot_expert_LS.tolist())
    )
    return f'{{"moe_layer_count": {len(placement.layers)}, "layer_list": [\n  {layers}]}}\n'


def _layer(row: int, experts: list[int], gpus: int) -> dict[str, Any]:
    each = len(experts) // gpus
    devices = [
        {"device_id": gpu, "device_expert": experts[gpu * each : (gpu + 1) * each]} for gpu in range(gpus)
    ]
    return {"layer_id": row, "device_count": gpus, "device_list": devices}
