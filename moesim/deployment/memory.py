"""What a deployment puts into the memory of each GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.deployment.batch import StepTokens
from moesim.errors import MemoryFitError
from moesim.spec.attention import INDEX_BYTES, STATE_BYTES, Attention
from moesim.spec.dtypes import DTYPE_BYTES
from moesim.spec.model import Model
from moesim.spec.scenario import Scenario
from moesim.units import format_bytes
from placement.problem.placement import EMPTY, Placement


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU, [G]."""

    weights_G: NDArray[np.float64]
    cache_G: NDArray[np.float64]

    @property
    def total_G(self) -> NDArray[np.float64]:
        """Weights and KV cache together."""
        return self.weights_G + self.cache_G


def memory(scenario: Scenario, placement: Placement, tokens: StepTokens) -> Memory:
    """What the weights and the sequences of one step take.

    The sequences of an attention group of tp GPUs are cached by all of them, each its share of the heads.
    """
    model, tp = scenario.model, scenario.parallelism.tp
    held = model.weight_bytes(scenario.parallelism.ep, tp, slots=0)
    moe_only = scenario.workload.part == "moe"
    common = held.shared + held.routers if moe_only else held.total
    weights_G = np.full(placement.gpus, common)
    bytes_LS = np.take_along_axis(model.expert_bytes_LE, placement.slot_expert_LS.astype(np.intp), axis=1)
    held_S = np.where(placement.slot_expert_LS != EMPTY, bytes_LS, 0.0).sum(axis=0)
    np.add.at(weights_G, placement.slot_gpu_S, held_S)
    if moe_only:
        return Memory(weights_G, np.zeros(placement.gpus))
    cached_G = np.zeros(placement.gpus)
    for attention, layers in model.attention_layers.items():
        cached_G += layers * tokens.per_rank(
            np.where(tokens.last_T, _cached(model, attention, tokens, tp), 0.0)
        )
    return Memory(weights_G, np.repeat(cached_G.reshape(-1, tp).sum(axis=1), tp))


def _cached(model: Model, attention: Attention, tokens: StepTokens, tp: int) -> NDArray[np.float64]:
    """[T], bytes in one layer that each of ``tp`` ranks caches of a sequence that ends with the token.

    It is all that the token may attend to: a sliding layer keeps its window only, a linear one its state.
    """
    keys = attention.cached(tokens.keys_T) * attention.kv_values_per_token * attention.kv_share(tp)
    index = attention.scanned(tokens.keys_T) * (attention.index_dim or 0)
    state = (attention.state or 0) * STATE_BYTES / tp
    return keys * DTYPE_BYTES[model.kv_dtype] + index * INDEX_BYTES + state


def check_memory(scenario: Scenario, needed: Memory) -> None:
    """Refuse a deployment that does not fit.

    Raises:
        MemoryFitError: with how much is missing and what would fit.
    """
    gpu, share = scenario.cluster.gpu, scenario.profile.memory
    usable = gpu.memory * share
    fullest = int(needed.total_G.argmax())
    total, cache = float(needed.total_G[fullest]), float(needed.cache_G[fullest])
    if total <= usable:
        return
    raise MemoryFitError(
        f"{scenario.model.name or 'the model'} on {scenario.parallelism.ep} GPUs needs {format_bytes(total)} "
        f"on GPU {fullest} ({format_bytes(total - cache)} weights, {format_bytes(cache)} KV cache), "
        f"{format_bytes(total - usable)} more than {gpu.name} offers ({share:.0%} of "
        f"{format_bytes(gpu.memory)}); {_what_fits(scenario, usable, total - cache, cache)}",
        field="cluster.gpu.memory",
    )


def _what_fits(scenario: Scenario, usable: float, weights: float, cache: float) -> str:
    """Fewer sequences if the weights fit, else the next larger group whose share of them does."""
    model, tp, experts = scenario.model, scenario.parallelism.tp, scenario.model.experts.count
    if weights < usable:
        part = (usable - weights) / cache
        floor = f"{int(100 * part)}%"
        if scenario.workload.phase != "decode":
            return f"{floor} of this KV cache would fit"
        each = scenario.workload.tokens_per_gpu.each
        tokens = f"tokens_per_gpu: {int(each * part)}" if each else f"{floor} of the sequences"
        # A sliding layer keeps its window of a shorter context too.
        context = "" if model.attention.window else f", or {floor} of the context"
        if each is None or int(each * part) >= 1:
            return f"{tokens} would fit{context}"
    slots = scenario.placement.slots or experts
    for ep in range(scenario.parallelism.ep + 1, experts + 1):
        if experts % ep or ep % tp:
            continue
        if model.weight_bytes(ep, tp, slots=-(-slots // ep)).total + cache < usable:
            return f"parallelism.ep: {ep} would fit"
    return "no larger group would fit; a larger tp, or GPUs with more memory"
