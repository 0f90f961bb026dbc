"""``eplb``: the balancer of DeepSeek, as published, for comparison.

Written anew from its description (https://github.com/deepseek-ai/EPLB): where the expert groups divide over
the nodes, groups are packed onto nodes in equal numbers, then inside each node the spare slots go one by one
to the expert with the largest load per copy, and the copies are packed onto the node's GPUs in equal numbers;
otherwise all GPUs are one node. Packing takes the largest first and gives it to the least loaded that has
room. It looks at loads alone: not at where experts are now, nor whether a GPU gets two copies of one expert.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from placement.errors import PlacementError
from placement.placement import Placement
from placement.problem import Problem
from placement.solution import NO_CLOCK, Limits, Report, Solution, solution
from traces.jit import jit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def eplb(
    problem: Problem, *, seed: int = 0, limits: Limits = NO_CLOCK, report: Report | None = None
) -> Solution:
    """Hierarchical where the problem has groups, else global; sees the loads' mean over windows.

    Raises:
        PlacementError: GPUs have unequal numbers of slots or nodes unequal numbers of GPUs, or a rule of the
            problem is broken.
    """
    started = time.perf_counter()
    nodes = problem.nodes if problem.groups > 1 else 1
    if problem.slots_G.min() != problem.slots_G.max():
        raise PlacementError("eplb needs equally many slots on each GPU", field="slots")
    gpus_N = np.bincount(problem.node_G)
    if nodes > 1 and gpus_N.min() != gpus_N.max():
        raise PlacementError("eplb needs equally many GPUs on each node", field="node")
    load_LE = problem.load_WLE.mean(axis=0)
    slot_expert_LS = _balance(load_LE, problem.slots, problem.gpus, nodes, problem.groups)
    # Its GPUs are counted node by node.
    gpu_order_G = np.argsort(problem.node_G, kind="stable") if nodes > 1 else np.arange(problem.gpus)
    slot_gpu_S = np.repeat(gpu_order_G, problem.slots // problem.gpus).astype(np.int32)
    placement = Placement(
        slot_expert_LS, slot_gpu_S, problem.experts, problem.gpus, problem.layers, origin="eplb"
    )
    return solution(problem, placement, "eplb", started)


@jit
def _balance(load_LE: Floats, slots: int, gpus: int, nodes: int, groups: int) -> npt.NDArray[np.int16]:
    """int16 [L, S], slots in order of nodes and their GPUs."""
    layers, experts = load_LE.shape
    if nodes == 1:
        groups = 1
    size, each, per_gpu = experts // groups, slots // nodes, slots // gpus
    slot_expert_LS = np.empty((layers, slots), np.int16)
    for layer in range(layers):
        load_P = load_LE[layer].reshape(groups, size).sum(axis=1)
        node_P = _pack(load_P, nodes)
        for node in range(nodes):
            expert_M = np.empty(experts // nodes, np.int64)
            known = 0
            for group in range(groups):
                if node_P[group] == node:
                    expert_M[known : known + size] = np.arange(group * size, (group + 1) * size)
                    known += size
            copy_C, share_C = _replicate(load_LE[layer][expert_M], each)
            gpu_C = _pack(share_C, gpus // nodes)
            used_G = np.zeros(gpus // nodes, np.int64)
            for copy in range(each):
                gpu = gpu_C[copy]
                slot = node * each + gpu * per_gpu + used_G[gpu]
                slot_expert_LS[layer, slot] = expert_M[copy_C[copy]]
                used_G[gpu] += 1
    return slot_expert_LS


@jit
def _pack(weight_I: Floats, packs: int) -> Ints:
    """int64 [I], a pack for each item, equally many in each: largest first, to the lightest with room."""
    room = len(weight_I) // packs
    pack_I = np.empty(len(weight_I), np.int64)
    weight_P, used_P = np.zeros(packs), np.zeros(packs, np.int64)
    for item in np.argsort(-weight_I, kind="mergesort"):
        best = -1
        for pack in range(packs):
            if used_P[pack] < room and (best < 0 or weight_P[pack] < weight_P[best]):
                best = pack
        pack_I[item] = best
        weight_P[best] += weight_I[item]
        used_P[best] += 1
    return pack_I


@jit
def _replicate(load_E: Floats, slots: int) -> tuple[Ints, Floats]:
    """int64 [S] the expert of each copy, float64 [S] its load; spare slots go where a copy has most."""
    experts = len(load_E)
    expert_S, copies_E = np.empty(slots, np.int64), np.ones(experts, np.int64)
    expert_S[:experts] = np.arange(experts)
    for slot in range(experts, slots):
        expert = np.argmax(load_E / copies_E)
        expert_S[slot] = expert
        copies_E[expert] += 1
    return expert_S, load_E[expert_S] / copies_E[expert_S]
