"""``eplb``: the balancer of DeepSeek, as published, for comparison.

Written anew from its description (https://github.com/deepseek-ai/EPLB): where the model's expert groups
divide over the nodes (num_groups % num_nodes == 0, as in its copies in SGLang and vLLM), groups are packed
onto nodes in equal numbers, then inside each node the spare slots go one by one to the expert with the
largest load per copy, and the copies are packed onto the node's GPUs in equal numbers; otherwise all GPUs
are one node. Packing takes the largest first and gives it to the least loaded that has room; with room for
one each it keeps the order. It looks at loads alone: not at where experts are now, nor whether a GPU gets
two copies of one expert.
"""

from __future__ import annotations

import time

import numpy as np

from placement.problem.errors import PlacementError
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.solvers.heuristics import replicas
from placement.solvers.packing import largest_first
from placement.solvers.solution import NO_CLOCK, Search, Solution, solution
from traces.base.arrays import Floats, Int16s, Ints
from traces.base.jit import jit, jit_inside


def eplb(problem: Problem, search: Search = NO_CLOCK) -> Solution:
    """Hierarchical or global, as :func:`kept_groups` says; sees the loads' mean over windows.

    Raises:
        PlacementError: GPUs have unequal numbers of slots or nodes unequal numbers of GPUs, or a rule of the
            problem is broken.
    """
    started = time.perf_counter()
    groups = kept_groups(problem)
    nodes = problem.nodes if groups > 1 else 1
    if problem.slots_G.min() != problem.slots_G.max():
        raise PlacementError("eplb needs equally many slots on each GPU", field="slots")
    gpus_N = np.bincount(problem.node_G)
    if nodes > 1 and gpus_N.min() != gpus_N.max():
        raise PlacementError("eplb needs equally many GPUs on each node", field="node")
    load_LE = problem.load_WLE.mean(axis=0)
    slot_expert_LS = _balance(load_LE, problem.slots, problem.gpus, nodes, groups)
    # Its GPUs are counted node by node.
    gpu_order_G = np.argsort(problem.node_G, kind="stable") if nodes > 1 else np.arange(problem.gpus)
    slot_gpu_S = np.repeat(gpu_order_G, problem.slots // problem.gpus).astype(np.int32)
    origin = f"eplb, {variant(problem)}"
    placement = Placement(
        slot_expert_LS, slot_gpu_S, problem.experts, problem.gpus, problem.layers, origin=origin
    )
    return solution(problem, placement, "eplb", started)


def kept_groups(problem: Problem) -> int:
    """Groups that stay on a node each; 1 where it is global.

    They are the problem's, else the model's where these divide over nodes of equally many GPUs.
    """
    if problem.groups > 1:
        return problem.groups
    sizes = np.bincount(problem.node_G)
    divide = problem.model_groups % problem.nodes == 0 and sizes.min() == sizes.max()
    return problem.model_groups if divide else 1


def variant(problem: Problem) -> str:
    """Which of its two ways it goes, in words: ``hierarchical`` or ``global``."""
    return "hierarchical" if kept_groups(problem) > 1 and problem.nodes > 1 else "global"


@jit
def _balance(load_LE: Floats, slots: int, gpus: int, nodes: int, groups: int) -> Int16s:
    """int16 [L, S], slots in order of nodes and their GPUs."""
    layers, experts = load_LE.shape
    size, each, first = experts // groups, slots // nodes, experts // nodes
    slot_expert_LS = np.empty((layers, slots), np.int16)
    expert_M = np.empty(experts, np.int64)
    for layer in range(layers):
        load_P = np.zeros(groups)
        for expert in range(experts):
            load_P[expert // size] += load_LE[layer, expert]
        place_P = _pack(load_P, nodes)
        for group in range(groups):
            for expert in range(size):
                expert_M[place_P[group] * size + expert] = group * size + expert
        for node in range(nodes):
            here_M = expert_M[node * first : (node + 1) * first]
            load_M = load_LE[layer][here_M]
            copy_C, copies_M = replicas(load_M, each, each)
            place_C = _pack(load_M[copy_C] / copies_M[copy_C], gpus // nodes)
            for copy in range(each):
                slot_expert_LS[layer, node * each + place_C[copy]] = here_M[copy_C[copy]]
    return slot_expert_LS


@jit_inside
def _pack(weight_I: Floats, packs: int) -> Ints:
    """int64 [I], a place for each item: largest first, the next place of the lightest pack that has room.

    Packs have equally many places, one after another. With one place each, items stay in their order.
    """
    room = len(weight_I) // packs
    if room == 1:
        return np.arange(packs)
    place_I = np.empty(len(weight_I), np.int64)
    weight_P, used_P = np.zeros(packs), np.zeros(packs, np.int64)
    for item in largest_first(weight_I):
        best = -1
        for pack in range(packs):
            if used_P[pack] < room and (best < 0 or weight_P[pack] < weight_P[best]):
                best = pack
        place_I[item] = best * room + used_P[best]
        weight_P[best] += weight_I[item]
        used_P[best] += 1
    return place_I
