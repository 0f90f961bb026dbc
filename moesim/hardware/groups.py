"""How fast the GPUs of attention groups, which share a node, exchange what they gather and scatter."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

from moesim.hardware.network import Fabric
from moesim.hardware.topology import build_topology
from moesim.spec.cluster import Cluster


def group_share(cluster: Cluster, gpus: int, tp: int) -> float:
    """Part of its bandwidth inside the node that each GPU reaches, all groups of ``tp`` at the same time.

    A group exchanges in a ring or each GPU straight with all others, whichever is faster (of the algorithms
    of NCCL, whose rings gather and scatter). Links that several of these flows take are shared evenly.

    Args:
        cluster: what is plugged into what.
        gpus: the GPUs of a node that are in groups; ``tp`` divides them.
        tp: GPUs of a group.

    Returns:
        1 where a switch joins them; less where a mesh splits a GPU's bandwidth over GPUs that are not in the
        group, or a group spans PCIe switches and their host is slower.
    """
    if tp == 1 or cluster.intra_node == "nvswitch":
        return 1.0
    whole = cluster.gpu.nvlink.bandwidth
    built = build_topology(cluster, Fabric(gpus, whole, cluster.nic.bandwidth, 0.0, 0.0), gpus)
    groups = [range(first, first + tp) for first in range(0, gpus, tp)]
    ring = [pair for group in groups for pair in pairwise((*group, group[0]))]
    straight = [pair for group in groups for pair in permutations(group, 2)]
    reached = 0.0
    for pairs in (ring, straight):
        flows = Counter(ends for pair in pairs for ends in pairwise(built.path(*pair)))
        slowest = min(built.graph.edges[ends]["bandwidth"] / count for ends, count in flows.items())
        reached = max(reached, slowest * len(pairs) / gpus)
    return min(1.0, reached / whole)
