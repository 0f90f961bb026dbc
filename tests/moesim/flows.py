"""Random traffic over random links, and max-min fairness written naively."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import SpecError
from moesim.hardware.network import Fabric, Ports
from moesim.spec.base import validate
from moesim.spec.cluster import Cluster

FloatArray = NDArray[np.float64]


def ports(
    start: FloatArray, first: FloatArray, second: FloatArray, fabric: Fabric, free: FloatArray | None = None
) -> FloatArray:
    """Ends of a collective on these links."""
    return Ports(fabric).collective(start, first, second, free)


@dataclass(frozen=True)
class Traffic:
    """The arguments of ``share_links``."""

    start_F: FloatArray
    bytes_F: FloatArray
    weight_F: FloatArray
    link_FH: NDArray[np.int32]
    bandwidth_L: FloatArray

    def paths(self) -> list[list[int]]:
        return [[int(link) for link in path if link >= 0] for path in self.link_FH]


@st.composite
def traffics(draw: st.DrawFn, flows: int = 14, links: int = 6) -> Traffic:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    F, L, H = draw(st.integers(1, flows)), draw(st.integers(1, links)), draw(st.integers(1, 4))
    link_FH = np.full((F, H), -1, np.int32)
    for path in link_FH:
        length = int(rng.integers(1, min(H, L) + 1))
        path[:length] = rng.permutation(L)[:length]
    few = draw(st.booleans())  # small whole numbers make ties common
    start_F = rng.integers(0, 4, F) if few else rng.random(F) * 4
    bytes_F = rng.integers(1, 6, F) if few else rng.exponential(3.0, F) + 1e-3
    bandwidth_L = rng.integers(1, 4, L) if few else rng.random(L) * 3 + 0.1
    weight_F = rng.integers(1, 3, F)
    return Traffic(
        start_F.astype(float),
        bytes_F.astype(float),
        weight_F.astype(float),
        link_FH,
        bandwidth_L.astype(float),
    )


def naive_levels(
    flows: list[int], paths: list[list[int]], weight_F: FloatArray, bandwidth_L: FloatArray
) -> dict[int, float]:
    """All flows rise together; those on the first link that fills up stay where they are; and again."""
    level: dict[int, float] = {}
    while len(level) < len(flows):
        full = {}
        for link, bandwidth in enumerate(bandwidth_L):
            on_link = [f for f in flows if link in paths[f]]
            rising = sum(weight_F[f] for f in on_link if f not in level)
            if rising:
                taken = sum(weight_F[f] * level[f] for f in on_link if f in level)
                full[link] = (bandwidth - taken) / rising
        first = min(full, key=lambda link: full[link])
        for f in flows:
            if f not in level and first in paths[f]:
                level[f] = full[first]
    return level


def naive_ends(traffic: Traffic) -> FloatArray:
    """Ends; every rate is solved from scratch at every event, one event at a time."""
    paths, left = traffic.paths(), dict(enumerate(traffic.bytes_F))
    end_F = np.zeros(len(left))
    now = float(traffic.start_F.min())
    while left:
        running = [f for f in left if traffic.start_F[f] <= now]
        coming = [float(traffic.start_F[f]) for f in left if traffic.start_F[f] > now]
        level = naive_levels(running, paths, traffic.weight_F, traffic.bandwidth_L)
        rate = {f: traffic.weight_F[f] * level[f] for f in running}
        then = min([*(now + left[f] / rate[f] for f in running), *coming])
        for f in running:
            left[f] -= (then - now) * rate[f]
            if left[f] <= 1e-12 * traffic.bytes_F[f]:
                end_F[f] = then
                del left[f]
        now = then
    return end_F


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Any small cluster that the specification accepts."""
    intra_node = draw(st.sampled_from(["nvswitch", "mesh", "pcie"]))
    P = draw(st.integers(1, 5))
    fields: dict[str, Any] = {
        "gpu": {
            "name": "tiny",
            "memory": "1 GB",
            "memory_bandwidth": "1 GB/s",
            "flops": {"bf16": "1 TFLOPS"},
            "sms": 1,
            "nvlink": {"bandwidth": draw(st.sampled_from([7.0, 9.0])), "latency": 0.25, "source": "a sheet"},
        },
        "gpus_per_node": P,
        "nodes": draw(st.integers(1, 4)),
        "nic": {"bandwidth": 3.0, "latency": 0.5, "spine_latency": 1.0, "source": "a sheet"},
        "intra_node": intra_node,
        "gpus_per_nic": draw(st.integers(1, 3)),
        "leaf": draw(st.sampled_from(["rail", "node"])),
        "nodes_per_leaf": draw(st.sampled_from([None, 1, 2, 4])),
        "oversubscription": draw(st.sampled_from([1, 1.5, 4])),
        "cross_rail": draw(st.sampled_from(["spine", "nvlink"])),
        "spine": draw(st.booleans()),
    }
    if intra_node == "mesh":
        fields["mesh_peers"] = draw(st.sampled_from([None, 7]))
    if intra_node == "pcie":
        fields["gpus_per_switch"] = draw(st.sampled_from([None, 1, 2]))
        fields["host"] = {
            "bandwidth": draw(st.sampled_from([2.0, 20.0])),
            "latency": 0.125,
            "source": "a sheet",
        }
    try:
        return validate(Cluster, fields)
    except SpecError:
        reject()


def fabric_of(cluster: Cluster) -> Fabric:
    """Its links at full rate."""
    link, nic = cluster.gpu.nvlink, cluster.nic
    P = min(cluster.gpus_per_node, cluster.gpus)
    return Fabric(P, link.bandwidth, nic.bandwidth, link.latency, nic.latency)


@st.composite
def collectives(draw: st.DrawFn, gpus: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Starts and both hops; few distinct starts, so that ties are common."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    first, second = (
        rng.integers(0, 20, (gpus, gpus)) * (rng.random((gpus, gpus)) < share) for share in (0.6, 0.3)
    )
    np.fill_diagonal(first, 0)
    np.fill_diagonal(second, 0)
    return rng.integers(0, 4, gpus).astype(float), first.astype(float), second.astype(float)
