"""How fast the GPUs of attention groups, which share a node, exchange what they gather and scatter."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.kernels import Kernels
from moesim.hardware.network import Fabric
from moesim.hardware.topology import build_topology
from moesim.spec.cluster import Cluster
from moesim.spec.dtypes import DTYPE_BYTES

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


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


def attention_group_s(kernels: Kernels, tokens_G: IntArray, nvlink_G: FloatArray | None = None) -> FloatArray:
    """Seconds of the all-gather before and the reduce-scatter after attention in a group of tp GPUs.

    Each moves (tp - 1) / tp of the group's activations through every GPU's NVLink port, at the part of its
    bandwidth that the group can use, so that the slowest port of a group holds up all of it.

    Args:
        kernels: the cost model.
        tokens_G: tokens at home on each GPU.
        nvlink_G: part of its bandwidth that each port still has; None where all are healthy.
    """
    tp = kernels.tp
    if tp == 1:
        return np.zeros(len(tokens_G))
    group_G = np.repeat(tokens_G.reshape(-1, tp).sum(axis=1), tp)
    token_bytes = kernels.model.hidden * DTYPE_BYTES[kernels.model.activation_dtype]
    bytes_G = group_G * token_bytes * (tp - 1) / tp
    link = kernels.gpu.nvlink
    seconds_G = bytes_G / (link.bandwidth * kernels.profile.nvlink * kernels.group_share)
    if nvlink_G is not None:
        seconds_G = seconds_G / np.repeat(nvlink_G.reshape(-1, tp).min(axis=1), tp)
    return 2 * (seconds_G + link.latency)
