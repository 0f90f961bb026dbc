"""vllm-ascend: the file of ``expert_map_path``."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

from placement.files.grid import check_full, expert_rows, full_placement
from placement.files.target import Target
from placement.files.text import compact_json
from placement.files.values import check_keys
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement
from placement.problem.rules import check_distinct

SYSTEM, KEY = "vllm-ascend", "layer_list"
_FILE = {"moe_layer_count": int, KEY: list}
_LAYER = {"layer_id": int, "device_count": int, "device_list": list}
_DEVICE = {"device_id": int, "device_expert": list}


def read(content: dict[str, Any], target: Target) -> Placement:
    """From the experts of each device of each MoE layer; the devices are the GPUs.

    The system goes by the order of layers and devices alone, so that their ids must be that order.

    Raises:
        PlacementError: it breaks its form, or has not as many layers as the model has MoE layers.
    """
    layers = check_keys(content, _FILE)[KEY]
    target.check_moe_rows(len(layers), KEY)
    _check_order("moe_layer_count", content["moe_layer_count"], len(layers))
    held_LG = [_devices(layer, row) for row, layer in enumerate(layers)]
    gpus = len(held_LG[0])
    for row, held_G in enumerate(held_LG):
        if len(held_G) != gpus:
            rule = f"must have {gpus} devices as the first layer"
            raise PlacementError(rule, field=f"{KEY}[{row}].device_list", got=len(held_G))
    table = expert_rows([held for held_G in held_LG for held in held_G], target.experts)
    return full_placement(table.reshape(len(layers), -1), replace(target, gpus=gpus), KEY, SYSTEM)


def _devices(layer: object, row: int) -> list[tuple[str, object]]:
    """What each device of a layer holds, and where that stands."""
    at = f"{KEY}[{row}]"
    found = check_keys(layer, _LAYER, at)
    devices = found["device_list"]
    if not devices:
        raise PlacementError("names no device", field=f"{at}.device_list")
    _check_order(f"{at}.layer_id", found["layer_id"], row)
    _check_order(f"{at}.device_count", found["device_count"], len(devices))
    held = []
    for gpu, device in enumerate(devices):
        here = f"{at}.device_list[{gpu}]"
        fields = check_keys(device, _DEVICE, here)
        _check_order(f"{here}.device_id", fields["device_id"], gpu)
        held.append((f"{here}.device_expert", fields["device_expert"]))
    return held


def load_with(placement: Placement, file: str) -> str:
    """What a server is started with to read the file (vllm-ascend, user guide on static EPLB)."""
    config = json.dumps({"eplb_config": {"expert_map_path": file}})
    return f"vllm serve MODEL --enable-expert-parallel --additional-config {shlex.quote(config)}"


def _check_order(field: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise PlacementError(f"must be {wanted}, by the lists as they stand", field=field, got=found)


def write(placement: Placement, hidden_layers: int | None) -> str:
    """``moe_layer_count`` and ``layer_list``: of each layer, of each device, its experts in slot order.

    Layers are counted over MoE layers alone, from 0. All lists together are read as one rectangular
    tensor, so that devices with unequal numbers of slots do not fit. Of the copies of an expert on one device
    it keeps the last, since its map of a device goes from expert to slot.

    Raises:
        PlacementError: vllm-ascend cannot hold it.
    """
    check_full(placement, SYSTEM)
    try:
        check_distinct(placement)
    except PlacementError as error:
        error.rule = f"{SYSTEM} keeps one copy of an expert on a device and would lose others: {error.rule}"
        raise
    layers, gpus = len(placement.layers), placement.gpus
    expert_LGK = placement.slot_expert_LS.reshape(layers, gpus, -1).tolist()
    rows = []
    for row, expert_GK in enumerate(expert_LGK):
        devices = [{"device_id": gpu, "device_expert": held} for gpu, held in enumerate(expert_GK)]
        rows.append(compact_json({"layer_id": row, "device_count": gpus, "device_list": devices}))
    return f'{{"moe_layer_count": {layers}, "{KEY}": [\n  ' + ",\n  ".join(rows) + "]}\n"
