"""The links of an expert-parallel group as a graph, and the path that each pair of its GPUs takes.

Vertices are tuples, the kind first: ``("gpu", g)``, ``("nvswitch", node)``, ``("pcie", node, i)``,
``("host", node)``, ``("nic", node, i)``, ``("leaf", pod, rail)``, ``("spine",)``. Edges are directed, one
for each way, and carry ``bandwidth`` (bytes per second), ``latency`` (seconds) and ``source``. Half of a
link's latency stands on the way into the switch and half on the way out, so that a path sums to whole ones.

Of the cluster only the group's nodes are built, and of each uplink to the spine only their share: another
group that uses the rest has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.hardware.network import Fabric
from moesim.spec.cluster import Cluster

if TYPE_CHECKING:
    import networkx as nx

Vertex = tuple[str | int, ...]
Path = tuple[Vertex, ...]


@dataclass(frozen=True)
class Topology:
    """The graph of a group, and how its traffic is routed.

    Attributes:
        graph: the links; bandwidths as transfer kernels reach them.
        gpus: size of the group: GPUs 0 to gpus - 1 of the cluster.
    """

    cluster: Cluster
    graph: nx.DiGraph[Vertex]
    gpus: int

    def path(self, sender: int, receiver: int) -> Path:
        """Vertices from one GPU of the group to another; inside a node never over its network cards.

        Between nodes: GPU, its card, leaf, and where the receiver's card is at another leaf, the spine.
        """
        P = self.cluster.gpus_per_node
        if sender // P == receiver // P:
            return self._inside(sender, receiver)
        detour: Path = ()
        if self.cluster.cross_rail == "nvlink" and self._rail(sender) != self._rail(receiver):
            relay = self._on_rail(sender, self._rail(receiver))
            detour, sender = self._inside(sender, relay)[:-1], relay
        up, down = self._to_leaf(sender), self._to_leaf(receiver)
        over: Path = () if up[-1] == down[-1] else (("spine",), down[-1])
        return (*detour, *up, *over, *reversed(down[:-1]))

    def _rail(self, gpu: int) -> int:
        return gpu % self.cluster.gpus_per_node // self.cluster.gpus_per_nic

    def _on_rail(self, gpu: int, rail: int) -> int:
        """The GPU of the same node that has the card of that rail; of several that share it, each its own."""
        P, sharing = self.cluster.gpus_per_node, self.cluster.gpus_per_nic
        local = min(rail * sharing + gpu % P % sharing, P - 1)
        return gpu - gpu % P + local

    def _inside(self, sender: int, receiver: int) -> Path:
        node = sender // self.cluster.gpus_per_node
        between: Path = ()
        if self.cluster.intra_node == "nvswitch":
            between = (("nvswitch", node),)
        elif self.cluster.intra_node == "pcie":
            between = _switches(_switch_of(self.cluster, sender), _switch_of(self.cluster, receiver))
        return ("gpu", sender), *between, ("gpu", receiver)

    def _to_leaf(self, gpu: int) -> Path:
        """From a GPU through its card to the leaf."""
        node, rail = gpu // self.cluster.gpus_per_node, self._rail(gpu)
        between: Path = ()
        if self.cluster.intra_node == "pcie":
            between = _switches(_switch_of(self.cluster, gpu), _switch_of_nic(self.cluster, node, rail))
        return ("gpu", gpu), *between, ("nic", node, rail), _leaf(self.cluster, node, rail)


def build_topology(cluster: Cluster, fabric: Fabric, gpus: int) -> Topology:
    """The links of the first ``gpus`` GPUs of a cluster.

    Args:
        cluster: what is plugged into what.
        fabric: latencies, and bandwidths as transfer kernels reach them.
        gpus: whole nodes, or less than one.
    """
    import networkx as nx  # a quarter of a second, for those who look at links only

    graph: nx.DiGraph[Vertex] = nx.DiGraph()
    nodes = -(-gpus // cluster.gpus_per_node)
    for node in range(nodes):
        _join_gpus(graph, cluster, fabric, node)
    if nodes > 1:
        for node in range(nodes):
            _join_cards(graph, cluster, fabric, node)
        _join_leaves(graph, cluster, fabric)
    _slow_ports(graph, cluster, fabric)
    return Topology(cluster, graph, gpus)


def _link(
    graph: nx.DiGraph[Vertex], one: Vertex, other: Vertex, bandwidth: float, latency: float, source: str
) -> None:
    """A link with both its directions; ``latency`` is of one passage."""
    graph.add_edge(one, other, bandwidth=bandwidth, latency=latency, source=source)
    graph.add_edge(other, one, bandwidth=bandwidth, latency=latency, source=source)


def _join_gpus(graph: nx.DiGraph[Vertex], cluster: Cluster, fabric: Fabric, node: int) -> None:
    """The links inside a node."""
    link, bandwidth, half = cluster.gpu.nvlink, fabric.nvlink_bandwidth, fabric.nvlink_latency_s / 2
    gpus = range(node * cluster.gpus_per_node, (node + 1) * cluster.gpus_per_node)
    for gpu in gpus:
        if cluster.intra_node == "nvswitch":
            _link(graph, ("gpu", gpu), ("nvswitch", node), bandwidth, half, link.source)
        elif cluster.intra_node == "pcie":
            _link(graph, ("gpu", gpu), _switch_of(cluster, gpu), bandwidth, half, link.source)
        else:
            each = bandwidth / (cluster.mesh_peers or max(1, len(gpus) - 1))
            for other in range(gpu + 1, gpus.stop):
                _link(graph, ("gpu", gpu), ("gpu", other), each, 2 * half, link.source)
    if cluster.intra_node == "pcie" and cluster.host is not None and cluster.switches_per_node > 1:
        # Transfer kernels reach the same share of every link inside the node.
        to_host = cluster.host.bandwidth * bandwidth / link.bandwidth
        for i in range(cluster.switches_per_node):
            ends: tuple[Vertex, Vertex] = ("pcie", node, i), ("host", node)
            _link(graph, *ends, to_host, cluster.host.latency / 2, cluster.host.source)


def _join_cards(graph: nx.DiGraph[Vertex], cluster: Cluster, fabric: Fabric, node: int) -> None:
    """From the GPUs of a node to their cards, and on to the leaves."""
    nic, bandwidth, half = cluster.nic, fabric.nic_bandwidth, fabric.nic_latency_s / 2
    behind = "assumed: no narrower than the card"
    for rail in range(cluster.nics_per_node):
        card: Vertex = ("nic", node, rail)
        _link(graph, card, _leaf(cluster, node, rail), bandwidth, half, nic.source)
        if cluster.intra_node == "pcie":
            _link(graph, _switch_of_nic(cluster, node, rail), card, bandwidth, 0.0, behind)
            continue
        first = rail * cluster.gpus_per_nic
        for local in range(first, min(first + cluster.gpus_per_nic, cluster.gpus_per_node)):
            _link(graph, ("gpu", node * cluster.gpus_per_node + local), card, bandwidth, 0.0, behind)


def _join_leaves(graph: nx.DiGraph[Vertex], cluster: Cluster, fabric: Fabric) -> None:
    """The uplinks of all leaves, if there is something to join and a spine to do so."""
    leaves = [vertex for vertex in graph if vertex[0] == "leaf"]
    if len(leaves) == 1 or not cluster.spine:
        return
    for leaf in leaves:
        uplink = graph.out_degree(leaf) * fabric.nic_bandwidth / cluster.oversubscription
        half = cluster.nic.spine_latency / 2
        source = f"cards under the leaf, oversubscribed {cluster.oversubscription:g} to 1"
        _link(graph, leaf, ("spine",), uplink, half, source)


def _slow_ports(graph: nx.DiGraph[Vertex], cluster: Cluster, fabric: Fabric) -> None:
    """Take what degraded ports have lost; a card that GPUs share is as slow as the faults of all of them."""
    parts: list[tuple[Vertex, float, bool]] = []
    for gpu, part in enumerate(() if fabric.nvlink_G is None else fabric.nvlink_G.tolist()):
        parts.append((("gpu", gpu), part, False))
    for gpu, part in enumerate(() if fabric.nic_G is None else fabric.nic_G.tolist()):
        node, local = divmod(gpu, cluster.gpus_per_node)
        parts.append((("nic", node, local // cluster.gpus_per_nic), part, True))
    for port, part, is_card in parts:
        if part == 1.0 or port not in graph:
            continue
        for one, other in [*graph.in_edges(port), *graph.out_edges(port)]:
            if is_card or "nic" not in (one[0], other[0]):
                graph.edges[one, other]["bandwidth"] *= part


def _switches(one: Vertex, other: Vertex) -> Path:
    """Through the PCIe tree of a node."""
    return (one,) if one == other else (one, ("host", one[1]), other)


def _switch_of(cluster: Cluster, gpu: int) -> Vertex:
    node, local = divmod(gpu, cluster.gpus_per_node)
    return "pcie", node, local // (cluster.gpus_per_switch or cluster.gpus_per_node)


def _switch_of_nic(cluster: Cluster, node: int, rail: int) -> Vertex:
    return _switch_of(cluster, node * cluster.gpus_per_node + rail * cluster.gpus_per_nic)


def _leaf(cluster: Cluster, node: int, rail: int) -> Vertex:
    return "leaf", node // cluster.nodes_of_leaf, rail if cluster.leaf == "rail" else 0
