"""The network models by name."""

from __future__ import annotations

from collections.abc import Callable

from moesim.errors import SpecError
from moesim.hardware.fluid import Fluid
from moesim.hardware.network import Fabric, Network, Ports
from moesim.hardware.routes import build_routes
from moesim.hardware.topology import build_topology
from moesim.spec.cluster import Cluster
from moesim.spec.links import Links

MAX_FLUID_GPUS = 512
"""Largest group for ``fluid``: routes are kept for each pair, and a collective takes seconds already."""


def reached(cluster: Cluster, links: Links, gpus_per_node: int) -> Fabric:
    """The links of a group's healthy GPUs, as far as its transfer kernels use them."""
    nvlink, nic = cluster.gpu.nvlink, cluster.nic
    return Fabric(
        gpus_per_node,
        links.bandwidth(links.nvlink, nvlink.bandwidth),
        links.bandwidth(links.nic, nic.bandwidth * nic.efficiency),
        nvlink.latency,
        nic.latency,
    )


def auto(cluster: Cluster, fabric: Fabric, gpus: int) -> Network:
    """fluid where GPUs of the group share links that can bind, else ports."""
    return NETWORKS[network_name("auto", cluster, gpus)](cluster, fabric, gpus)


def ports(_cluster: Cluster, fabric: Fabric, _gpus: int) -> Network:
    """Only the GPUs' own ports limit, NVLink and NIC each way: the bound below any sharing of links."""
    return Ports(fabric)


def fluid(cluster: Cluster, fabric: Fabric, gpus: int) -> Network:
    """Flows share every link on their paths max-min fairly: NVLink or PCIe, cards, leaves, spine.

    Raises:
        SpecError: the group is larger than ``MAX_FLUID_GPUS``.
    """
    if gpus > MAX_FLUID_GPUS:
        raise SpecError(
            f"fluid holds at most {MAX_FLUID_GPUS} GPUs; network: ports gives a lower bound for any number",
            field="network",
            got=f"{gpus} GPUs",
        )
    return Fluid(build_routes(build_topology(cluster, fabric, gpus)))


NETWORKS: dict[str, Callable[[Cluster, Fabric, int], Network]] = {
    "auto": auto,
    "ports": ports,
    "fluid": fluid,
}


def network_name(name: str, cluster: Cluster, gpus: int) -> str:
    """``name``, or what ``auto`` chooses for the first ``gpus`` GPUs of a cluster."""
    if name != "auto":
        return name
    return "fluid" if _shares_links(cluster, gpus) else "ports"


def _shares_links(cluster: Cluster, gpus: int) -> bool:
    """Whether some link that can bind is not one GPU's own port to its node's switch, or its own card.

    Inside a node any but a switch that never blocks; between nodes shared cards, other GPUs' cards, and
    uplinks that are oversubscribed.
    """
    if cluster.intra_node != "nvswitch":
        return True
    if gpus <= cluster.gpus_per_node:
        return False
    return cluster.gpus_per_nic > 1 or cluster.cross_rail == "nvlink" or cluster.oversubscription > 1
