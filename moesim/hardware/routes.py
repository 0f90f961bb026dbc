"""The links that can bind on the way of each pair of GPUs, as arrays.

Axes: G GPUs of the group, L links (one direction each), H links on the longest path.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.topology import Topology, Vertex

NO_LINK = -1


@dataclass(frozen=True)
class Routes:
    """What a network model needs of a topology.

    Attributes:
        gpus_per_node: P of the group; GPU g stands in node g // P.
        links: [L] ends of each link, from and to.
        bandwidth_L: bytes per second.
        link_GGH: links from GPU (first axis) to GPU (second), in order, filled up with ``NO_LINK``.
        latency_GG: seconds over the whole path.
    """

    gpus_per_node: int
    links: tuple[tuple[Vertex, Vertex], ...]
    bandwidth_L: NDArray[np.float64]
    link_GGH: NDArray[np.int32]
    latency_GG: NDArray[np.float64]


def build_routes(topology: Topology) -> Routes:
    """Look up every pair's path, then leave out the links that others on the same paths always spare.

    A link can never bind if the links before it together carry no more than it does, or those after it: a
    card's two ends, the uplinks of a leaf that is not oversubscribed. What is left falls apart into groups
    of flows that do not meet, which makes the model fast, and changes no result.
    """
    graph, G = topology.graph, topology.gpus
    number = {ends: i for i, ends in enumerate(graph.edges)}
    latency_GG = np.zeros((G, G))
    link_GG: dict[tuple[int, int], list[int]] = {}
    for pair in itertools.permutations(range(G), 2):
        steps = list(itertools.pairwise(topology.path(*pair)))
        link_GG[pair] = [number[ends] for ends in steps]
        latency_GG[pair] = sum(graph.edges[ends]["latency"] for ends in steps)
    longest = max((len(links) for links in link_GG.values()), default=1)
    link_GGH = np.full((G, G, longest), NO_LINK, np.int32)
    for pair, links in link_GG.items():
        link_GGH[pair][: len(links)] = links
    bandwidth_L = np.array([graph.edges[ends]["bandwidth"] for ends in number], np.float64)

    path_RH = link_GGH.reshape(-1, longest)
    # The second pass may rely on what the first has kept, never the two on each other.
    path_RH = _without(path_RH, _fed_by_less(path_RH, bandwidth_L))
    path_RH = _without(path_RH, _fed_by_less(_reversed(path_RH), bandwidth_L))
    kept = np.unique(path_RH[path_RH != NO_LINK])
    renumbered_L = np.full(len(bandwidth_L) + 1, NO_LINK, np.int32)  # the last stands for NO_LINK
    renumbered_L[kept] = np.arange(len(kept))
    ends = list(number)
    return Routes(
        min(topology.cluster.gpus_per_node, G),
        tuple(ends[i] for i in kept),
        bandwidth_L[kept],
        renumbered_L[path_RH].reshape(G, G, -1),
        latency_GG,
    )


def _fed_by_less(path_RH: NDArray[np.int32], bandwidth_L: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[L]: whether the links just before a link carry no more than it does, and no path begins with it."""
    before_R, after_R = path_RH[:, :-1].ravel(), path_RH[:, 1:].ravel()
    there_R = after_R != NO_LINK
    steps = np.unique(np.stack([before_R[there_R], after_R[there_R]]), axis=1)
    fed_L = np.bincount(steps[1], bandwidth_L[steps[0]], minlength=len(bandwidth_L))
    spared_L = (fed_L > 0) & (fed_L <= bandwidth_L * (1 + 1e-9))
    begins_R = path_RH[:, 0]
    spared_L[begins_R[begins_R != NO_LINK]] = False
    return spared_L


def _without(path_RH: NDArray[np.int32], spared_L: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The same paths without some links, moved up to the left."""
    dropped_L = np.append(spared_L, True)  # the last stands for NO_LINK
    kept_RH = np.where(dropped_L[path_RH], NO_LINK, path_RH)
    order_RH = np.argsort(kept_RH == NO_LINK, axis=1, kind="stable")
    moved_RH = np.take_along_axis(kept_RH, order_RH, axis=1)
    longest = max(1, int((moved_RH != NO_LINK).sum(axis=1).max()))
    return moved_RH[:, :longest]


def _reversed(path_RH: NDArray[np.int32]) -> NDArray[np.int32]:
    """The same paths from their ends, filled up on the right again."""
    flipped_RH = path_RH[:, ::-1]
    order_RH = np.argsort(flipped_RH == NO_LINK, axis=1, kind="stable")
    return np.take_along_axis(flipped_RH, order_RH, axis=1)
