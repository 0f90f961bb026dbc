"""What routing policies cost on a GPU: an estimate, which the router's phase is charged.

A policy tells in :class:`moesim.routing.policy.Cost` how often it goes over which table. Each pass is a
kernel that streams its table once; in an exchange every rank tells all others one number for each expert.

Axes: G GPUs of the expert-parallel group, P of them in a node, T tokens, K experts per token, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.kernels import Kernels
from moesim.hardware.network import Fabric
from moesim.routing.policy import Cost
from moesim.spec.profile import Profile

# An expert as int32 with its weight in float32; a score in float32; a count in int32.
_ASSIGNMENT_BYTES, _SCORE_BYTES, _COUNT_BYTES = 8, 4, 4


def total(costs: Iterable[Cost]) -> Cost:
    """Of several policies.

    >>> total([Cost(assignments=3), Cost(assignments=1, exchanges=1)])
    Cost(assignments=4, candidates=0, exchanges=1)
    """
    sums = np.array([(0, 0, 0), *((each.assignments, each.candidates, each.exchanges) for each in costs)])
    return Cost(*sums.sum(axis=0).tolist())


def launching(profile: Profile, cost: Cost) -> Profile:
    """The profile with a launch more in the router's phase for each pass and each exchange."""
    launches = cost.assignments + cost.candidates + cost.exchanges
    if not launches:
        return profile
    router = profile.kernels.get("router", 0) + launches
    return profile.model_copy(update={"kernels": {**profile.kernels, "router": router}})


def pass_seconds(cost: Cost, kernels: Kernels, tokens_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """[G] seconds of the passes of one layer without launches.

    With a passes over assignments and c over scores: T·(8·a·K + 4·c·E) bytes over the memory bandwidth that
    the router's kernels reach.
    """
    experts, profile = kernels.model.experts, kernels.profile
    token_bytes = (
        cost.assignments * experts.top_k * _ASSIGNMENT_BYTES + cost.candidates * experts.count * _SCORE_BYTES
    )
    seconds_G: NDArray[np.float64] = tokens_G * (
        token_bytes / (kernels.gpu.memory_bandwidth * (profile.router or profile.gemm).memory)
    )
    return seconds_G


def exchange_seconds(cost: Cost, experts: int, fabric: Fabric, gpus: int) -> float:
    """Seconds on links of the exchanges of one layer.

    For each what 4·E bytes from each of the other GPUs take, (P - 1) of them over NVLink beside (G - P) over
    the NIC, and one latency.
    """
    inside, counts = fabric.gpus_per_node, experts * _COUNT_BYTES
    seconds = max(
        (inside - 1) * counts / fabric.nvlink_bandwidth, (gpus - inside) * counts / fabric.nic_bandwidth
    )
    return cost.exchanges * (seconds + (fabric.nic_latency_s if gpus > inside else fabric.nvlink_latency_s))
