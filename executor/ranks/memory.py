"""Whether a rank's weights fit, asked before they are made: an operating system may kill, not refuse."""

from __future__ import annotations

from pathlib import Path

import torch

from executor.plan.errors import PlanError
from executor.plan.plan import Plan

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def weight_bytes(plan: Plan, rank: int) -> int:
    """Bytes of a rank's experts, shared experts and gates, all layers together."""
    model, slots = plan.model, plan.local_slots(rank)
    inner = len(model.layers) * model.shared_width
    for layer, expert_S in zip(model.layers, plan.slot_expert_LS, strict=True):
        inner += sum(model.width_of(layer, expert) for expert in expert_S[slots].tolist())
    gates = len(model.layers) * model.hidden * model.experts
    return ((3 if model.gated else 2) * model.hidden * inner + gates) * DTYPE_BYTES[plan.dtype]


def check_memory(plan: Plan, rank: int, device: torch.device, sharing: int) -> None:
    """Refuse a plan whose weights are larger than what is free, a part of it for each of ``sharing`` ranks.

    Raises:
        PlanError: saying how much is missing.
    """
    free = _free_bytes(device, sharing)
    needed = weight_bytes(plan, rank)
    if free is not None and needed > free:
        raise PlanError(
            f"the weights of rank {rank} take {_gib(needed)}, {_gib(needed - free)} more than are free on "
            f"{device}: use more ranks, fewer layers or a smaller dtype",
            field="memory",
            got=f"{_gib(free)} free",
        )


def _free_bytes(device: torch.device, sharing: int) -> int | None:
    """What can be allocated; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(available) * 1024 // sharing


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
