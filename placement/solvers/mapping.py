"""Clusters of experts onto GPUs, by where tokens go from layer to layer: MoETuner's second stage.

Axes: L MoE layers, C clusters of a layer (one for each GPU), G GPUs, P permutations of the GPUs.
"""

from __future__ import annotations

import itertools

import numpy as np

from placement.solvers.programme import Effort, amounts, binaries, solve_programme, values
from traces.base.arrays import Floats, Ints
from traces.base.jit import jit

ACROSS = 9.0
"""How many times longer a token takes to another node than inside one.

450 GB/s of NVLink over 50 GB/s of a NIC: data sheets of H100 and ConnectX-7.
"""

_MOST_EXACT_GPUS = 4  # 24 permutations, 576 pairs of them a layer; 5 GPUs would have 14,400


def wires(node_G: Ints) -> Floats:
    """float64 [G, G], 1 / bandwidth: 0 on the GPU itself, 1 inside a node, ``ACROSS`` between nodes."""
    wire_GG = np.where(node_G[:, None] == node_G[None, :], 1.0, ACROSS)
    np.fill_diagonal(wire_GG, 0.0)
    return wire_GG


def mapping_cost(moved_LCC: Ints, wire_GG: Floats, gpu_LC: Ints) -> float:
    """Σ over neighbouring layers of the largest, over pairs of GPUs, of tokens moved · wire: stage 2's."""
    return sum(
        float((moved_CC * wire_GG[np.ix_(here_C, next_C)]).max())
        for moved_CC, here_C, next_C in zip(moved_LCC, gpu_LC[:-1], gpu_LC[1:], strict=True)
    )


def cheapest_mapping(moved_LCC: Ints, wire_GG: Floats, effort: Effort) -> tuple[Ints, bool]:
    """Stage 2: in each layer one cluster for one GPU, such that :func:`mapping_cost` is small.

    Args:
        moved_LCC: [L − 1, C, C], tokens from a cluster of a layer (row) to one of the next.
        wire_GG: what a token costs from GPU to GPU.

    Returns:
        (gpu_LC, proven): the GPU of each cluster; whether no other mapping is cheaper.
    """
    gpus, layers = len(wire_GG), len(moved_LCC) + 1
    gpu_LC = np.tile(np.arange(gpus), (layers, 1))
    if gpus == 1 or layers == 1:
        return gpu_LC, True
    if effort.over:
        return gpu_LC, False
    if gpus <= _MOST_EXACT_GPUS:
        path_L = _cheapest_path(_permutation_costs(moved_LCC, wire_GG), effort)
        return (gpu_LC, False) if path_L is None else (permutations(gpus)[path_L], True)
    _exchange(moved_LCC.astype(np.float64), wire_GG, gpu_LC)
    return gpu_LC, False


def permutations(gpus: int) -> Ints:
    """int64 [P, C], all ways to give each cluster a GPU of its own."""
    return np.array(list(itertools.permutations(range(gpus))))


def _permutation_costs(moved_LCC: Ints, wire_GG: Floats) -> Floats:
    """float64 [L − 1, P, P], stage 2's term for each permutation of a layer and of the next."""
    gpu_PC = permutations(len(wire_GG))
    wire_PPCC = wire_GG[gpu_PC[:, None, :, None], gpu_PC[None, :, None, :]]
    return np.stack([(moved_CC * wire_PPCC).max(axis=(2, 3)) for moved_CC in moved_LCC])


def _cheapest_path(cost_LPP: Floats, effort: Effort) -> Ints | None:
    """int64 [L], the permutation of each layer with the least sum of costs; None where a limit came first.

    Products y·y' of two layers' variables become one variable for each pair of permutations. With that the
    relaxation is a flow, so its corners are whole; one variable for each product of two single variables
    took 26 s for 4 layers.
    """
    import pulp

    boundaries, count, _ = cost_LPP.shape
    programme = pulp.LpProblem("mapping")
    chosen_LP = binaries(programme, "chosen", boundaries + 1, count)
    scale = cost_LPP.max() or 1.0
    pair_LPP = amounts(programme, "pair", boundaries, count, count)
    programme += pulp.lpDot((cost_LPP / scale).ravel().tolist(), pair_LPP.ravel())
    programme += pulp.lpSum(chosen_LP[0]) == 1
    for row, pair_PP in enumerate(pair_LPP):
        for p in range(count):
            programme += pulp.lpSum(pair_PP[p]) == chosen_LP[row, p]
            programme += pulp.lpSum(pair_PP[:, p]) == chosen_LP[row + 1, p]
    outcome = solve_programme(programme, effort)
    return values(chosen_LP).argmax(axis=1) if outcome.proven else None


@jit
def _exchange(moved_LCC: Floats, wire_GG: Floats, gpu_LC: Ints) -> None:
    """Exchange the GPUs of two clusters of a layer wherever that makes its two terms smaller, to no end."""
    layers, clusters = gpu_LC.shape
    improved = True
    while improved:
        improved = False
        for layer in range(layers):
            best = _around(moved_LCC, wire_GG, gpu_LC, layer)
            for a in range(clusters):
                for b in range(a + 1, clusters):
                    gpu_LC[layer, a], gpu_LC[layer, b] = gpu_LC[layer, b], gpu_LC[layer, a]
                    cost = _around(moved_LCC, wire_GG, gpu_LC, layer)
                    if cost < best * (1 - 1e-9):
                        best, improved = cost, True
                    else:
                        gpu_LC[layer, a], gpu_LC[layer, b] = gpu_LC[layer, b], gpu_LC[layer, a]


@jit
def _around(moved_LCC: Floats, wire_GG: Floats, gpu_LC: Ints, layer: int) -> float:
    """The terms before and after a layer."""
    clusters = gpu_LC.shape[1]
    total = 0.0
    for before in range(max(layer - 1, 0), min(layer + 1, len(moved_LCC))):
        most = 0.0
        for a in range(clusters):
            for b in range(clusters):
                wire = wire_GG[gpu_LC[before, a], gpu_LC[before + 1, b]]
                most = max(most, moved_LCC[before, a, b] * wire)
        total += most
    return total
