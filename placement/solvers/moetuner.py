"""MoETuner (arXiv 2502.06643): balanced clusters of experts, then clusters onto GPUs by where tokens go next.

Axes: L MoE layers, E experts of a layer, C clusters of a layer (one for each GPU), G GPUs.

It moves a token from the GPU of one layer's expert straight to that of the next. Where tokens go home after
every layer its second stage has no effect on any byte, and :mod:`placement.solvers.locality` is what helps.

What departs from the paper: its first programme lacks that every expert has one cluster, and how many a
cluster holds; without both it degenerates. Its second has products of two variables, linearised here.
"""

from __future__ import annotations

import time

import numpy as np

from placement.problem.errors import PlacementError
from placement.problem.placement import EMPTY, Placement
from placement.problem.problem import Problem
from placement.solvers.arrangement import in_slots
from placement.solvers.heuristics import greedy
from placement.solvers.mapping import cheapest_mapping, wires
from placement.solvers.programme import Effort, amounts, binaries, load_backends, solve_programme, values
from placement.solvers.solution import NO_CLOCK, Search, Solution, solution
from traces.base.arrays import Floats, Ints
from traces.co_activation import transitions

_MOST_BINARIES = 256  # 32 experts in 8 clusters; the next size (64 in 8) proves nothing in a minute
_NODES = 2000


def moetuner(problem: Problem, search: Search = NO_CLOCK) -> Solution:
    """Both stages, on the loads' mean over windows and the transitions of the sampled tokens.

    Up to 4 GPUs, and 256 experts × GPUs, both stages are solved to the end; beyond, the first begins and
    may stay with the largest load first, and the second with exchanges of two clusters. It makes no
    copies: slots to spare stay empty.

    Raises:
        PlacementError: GPUs differ in slots or speed; a rule that the paper does not know; no sample.
    """
    started = time.perf_counter()
    sample_TLK, size, gpus = _understood(problem), int(problem.slots_G[0]), problem.gpus
    effort = Effort.within(search, _NODES, started)
    load_LE = problem.load_WLE.mean(axis=0)
    cluster_LE = np.stack([_largest_first(load_E, gpus, size) for load_E in load_LE])
    gpu_LC = np.tile(np.arange(gpus), (len(load_LE), 1))
    proven, interrupted = True, False
    try:
        load_backends()
        for row, load_E in enumerate(load_LE):
            if effort.over:
                proven = False
                break
            cluster_LE[row], optimal = balanced_clusters(load_E, gpus, size, effort)
            proven &= optimal
        moved_LCC = between_clusters(transitions(sample_TLK, problem.experts), cluster_LE, gpus)
        gpu_LC, optimal = cheapest_mapping(moved_LCC, wires(problem.node_G), effort)
        proven &= optimal
    except KeyboardInterrupt:
        interrupted = True
    slot_gpu_S = problem.slot_gpu_S
    held_LEG = np.take_along_axis(gpu_LC, cluster_LE, axis=1)[:, :, None] == np.arange(gpus)
    empty_S = np.full(problem.slots, EMPTY, dtype=np.int16)
    slot_expert_LS = np.stack([in_slots(held, slot_gpu_S, empty_S) for held in held_LEG])
    placement = Placement(
        slot_expert_LS, slot_gpu_S, problem.experts, gpus, problem.layers, origin="moetuner"
    )
    return solution(
        problem, placement, "moetuner", started, limit_reached=not proven, interrupted=interrupted
    )


def balanced_clusters(load_E: Floats, clusters: int, size: int, effort: Effort) -> tuple[Ints, bool]:
    """Stage 1 of one layer: min Σ_c |T_c − mean of T|, with T_c the load of cluster c.

    Returns:
        (cluster_E, proven): the cluster of each expert, at most ``size`` in each; whether it is optimal.
        Never worse than the largest load first.

    >>> balanced_clusters(np.array([4.0, 3.0, 2.0, 1.0]), clusters=2, size=2, effort=Effort(100))
    (array([0, 1, 1, 0]), True)
    """
    import pulp

    start_E = _largest_first(load_E, clusters, size)
    if len(load_E) * clusters > _MOST_BINARIES:
        return start_E, False
    weight_E = load_E * clusters / load_E.sum()  # the mean cluster is 1
    programme = pulp.LpProblem("clusters")
    in_EC = binaries(programme, "in", len(load_E), clusters)
    apart_C = amounts(programme, "apart", clusters)
    programme += pulp.lpSum(apart_C)
    for in_C in in_EC:
        programme += pulp.lpSum(in_C) == 1
    for in_E, apart in zip(in_EC.T, apart_C, strict=True):
        load = pulp.lpDot(weight_E.tolist(), in_E)
        programme += pulp.lpSum(in_E) <= size
        programme += load - 1 <= apart
        programme += 1 - load <= apart
    outcome = solve_programme(programme, effort)
    if outcome.value is None:
        return start_E, False
    found_E = values(in_EC).argmax(axis=1)
    best_E = min(start_E, found_E, key=lambda cluster_E: unevenness(cluster_E, weight_E, clusters))
    return best_E, outcome.proven


def unevenness(cluster_E: Ints, load_E: Floats, clusters: int) -> float:
    """Σ_c |T_c − mean of T|, what stage 1 makes small."""
    load_C = np.bincount(cluster_E, load_E, clusters)
    return float(np.abs(load_C - load_C.mean()).sum())


def between_clusters(moved_LEE: Ints, cluster_LE: Ints, clusters: int) -> Ints:
    """int64 [L − 1, C, C], transitions of experts added up by the clusters that hold them."""
    moved_LCC = np.zeros((len(moved_LEE), clusters, clusters), np.int64)
    for moved_CC, moved_EE, here_E, next_E in zip(
        moved_LCC, moved_LEE, cluster_LE[:-1], cluster_LE[1:], strict=True
    ):
        np.add.at(moved_CC, (here_E[:, None], next_E[None, :]), moved_EE)
    return moved_LCC


def _understood(problem: Problem) -> Ints:
    """The sample of a problem that has nothing the paper does not know.

    Raises:
        PlacementError: it has.
    """
    if problem.sample_TLK is None:
        raise PlacementError("moetuner needs sampled tokens: give a routing trace", field="solver")
    for field, each_G in (("slots", problem.slots_G), ("speed", problem.speed_G)):
        if (each_G != each_G[0]).any():
            raise PlacementError("moetuner needs equal GPUs", field=field, got=each_G)
    for field, asked in (
        ("groups", problem.groups > 1),
        ("fixed", problem.fixed),
        ("forbidden", problem.forbidden),
        ("max_moves", problem.max_moves is not None),
    ):
        if asked:
            raise PlacementError("is not known to moetuner", field=field)
    return problem.sample_TLK


def _largest_first(load_E: Floats, clusters: int, size: int) -> Ints:
    """int64 [E], the cluster of each expert: the largest load first to the smallest cluster."""
    # As many slots as experts, as evenly as they divide: greedy would fill others with copies.
    slot_cluster_S = np.sort(np.arange(len(load_E), dtype=np.int32) % clusters)
    cluster_E = np.empty(len(load_E), np.int64)
    cluster_E[greedy(load_E[None], slot_cluster_S, clusters)[0]] = slot_cluster_S
    return cluster_E
