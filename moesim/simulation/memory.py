"""What a deployment puts into the memory of each GPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import MemoryFitError
from moesim.spec.scenario import Scenario
from moesim.units import format_bytes
from placement.placement import EMPTY, Placement


def memory_G(scenario: Scenario, placement: Placement) -> NDArray[np.float64]:
    """Bytes of weights and KV cache on each GPU, [G].

    The sequences of an attention group of tp GPUs are cached by all of them, each its share of the heads.
    """
    model, tp = scenario.model, scenario.parallelism.tp
    common = model.weight_bytes(scenario.parallelism.ep, tp, slots=0).total
    sequences = scenario.workload.tokens_per_gpu * tp
    cache = sequences * model.kv_cache_bytes(scenario.workload.context, tp)
    experts_G = np.zeros(placement.gpus)
    held_S = (placement.slot_expert_LS != EMPTY).sum(axis=0)
    np.add.at(experts_G, placement.slot_gpu_S, held_S * model.expert_bytes)
    return experts_G + common + cache


def check_memory(scenario: Scenario, bytes_G: NDArray[np.float64]) -> None:
    """Refuse a deployment that does not fit.

    Raises:
        MemoryFitError: with how much is missing and what would fit.
    """
    usable = scenario.cluster.gpu.memory * scenario.profile.memory
    needed = float(bytes_G.max())
    if needed <= usable:
        return
    cache = scenario.model.kv_cache_bytes(scenario.workload.context, scenario.parallelism.tp)
    cache *= scenario.workload.tokens_per_gpu * scenario.parallelism.tp
    raise MemoryFitError(
        f"{scenario.model.name} on {scenario.parallelism.ep} GPUs needs {format_bytes(needed)} on GPU "
        f"{int(bytes_G.argmax())} ({format_bytes(needed - cache)} weights, {format_bytes(cache)} KV cache); "
        f"{format_bytes(needed - usable)} more than {scenario.cluster.gpu.name} offers "
        f"({scenario.profile.memory:.0%} of {format_bytes(scenario.cluster.gpu.memory)}): raise "
        "parallelism.ep, or lower workload.tokens_per_gpu or workload.context",
        field="cluster.gpu.memory",
    )
