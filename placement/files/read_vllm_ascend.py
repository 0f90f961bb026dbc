"""vllm-ascend: the file of ``expert_map_path``."""

from __future__ import annotations

from typing import Any

from placement.files.read_grid import expert_rows, full_placement
from placement.files.target import Target
from placement.files.values import check_keys
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement

_LAYERS = "layer_list"
_FILE = {"moe_layer_count": int, _LAYERS: list}
_LAYER = {"layer_id": int, "device_count": int, "device_list": list}
_DEVICE = {"device_id": int, "device_expert": list}


def vllm_ascend(content: dict[str, Any], target: Target) -> Placement:
    """From the experts of each device of each MoE layer; the devices are the GPUs.

    The system goes by the order of layers and devices alone, so that their ids must be that order.

    Raises:
        PlacementError: it breaks its form, or has not as many layers as the model has MoE layers.
    """
    layers = check_keys(content, _FILE)[_LAYERS]
    target.check_moe_rows(len(layers), _LAYERS)
    _check_order("moe_layer_count", content["moe_layer_count"], len(layers))
    held_LG = [_devices(layer, row) for row, layer in enumerate(layers)]
    gpus = len(held_LG[0])
    for row, held_G in enumerate(held_LG):
        if len(held_G) != gpus:
            rule = f"must have {gpus} devices as the first layer"
            raise PlacementError(rule, field=f"{_LAYERS}[{row}].device_list", got=len(held_G))
    table = expert_rows([held for held_G in held_LG for held in held_G], target.experts)
    return full_placement(
        table.reshape(len(layers), -1),
        experts=target.experts,
        gpus=gpus,
        layers=target.layers,
        field=_LAYERS,
        system="vllm-ascend",
    )


def _devices(layer: object, row: int) -> list[tuple[str, object]]:
    """What each device of a layer holds, and where that stands."""
    at = f"{_LAYERS}[{row}]"
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


def _check_order(field: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise PlacementError(f"must be {wanted}, by the lists as they stand", field=field, got=found)
