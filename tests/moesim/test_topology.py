"""Graphs and paths: presets by hand, and what holds for every cluster that is accepted."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.hardware.networks import MAX_FLUID_GPUS, NETWORKS, network_name
from moesim.hardware.routes import NO_LINK, build_routes
from moesim.hardware.topology import Path, Topology, build_topology
from moesim.spec.cluster import Cluster, load_cluster
from moesim.spec.presets import preset_names
from moesim.spec.yaml_source import Source
from tests.moesim.flows import clusters, fabric_of

NOWHERE = Source(None, None, {})


def topology(value: object, gpus: int | None = None) -> Topology:
    cluster = load_cluster(value, NOWHERE)
    return build_topology(cluster, fabric_of(cluster), gpus or cluster.gpus)


def kinds(path: Path) -> list[object]:
    return [vertex[0] for vertex in path]


def seconds(built: Topology, path: Path) -> float:
    return float(sum(built.graph.edges[ends]["latency"] for ends in itertools.pairwise(path)))


def test_a_board_with_a_card_for_each_gpu_on_rails() -> None:
    h800 = topology("h800-4x8")
    assert h800.path(0, 5) == (("gpu", 0), ("nvswitch", 0), ("gpu", 5))
    same_rail = h800.path(1, 17)
    assert same_rail == (("gpu", 1), ("nic", 0, 1), ("leaf", 0, 1), ("nic", 2, 1), ("gpu", 17))
    across = h800.path(1, 16)
    assert across[2:5] == (("leaf", 0, 1), ("spine",), ("leaf", 0, 0))
    assert seconds(h800, h800.path(0, 5)) == pytest.approx(0.6e-6)
    assert seconds(h800, same_rail) == pytest.approx(2.7e-6)
    assert seconds(h800, across) == pytest.approx(3.6e-6)
    # Four cards under each leaf, not oversubscribed.
    assert h800.graph.edges[("leaf", 0, 1), ("spine",)]["bandwidth"] == 4 * 50e9


def test_another_rail_over_nvlink_first() -> None:
    pxn = topology({"base": "h800-4x8", "cross_rail": "nvlink", "spine": False})
    assert pxn.path(1, 16)[:4] == (("gpu", 1), ("nvswitch", 0), ("gpu", 0), ("nic", 0, 0))
    assert kinds(pxn.path(1, 17)) == ["gpu", "nic", "leaf", "nic", "gpu"]
    assert ("spine",) not in pxn.graph


def test_gpus_that_share_cards_keep_their_turn_on_the_other_rail() -> None:
    """Cards 0 and 1 serve GPUs 0, 1 and 2 of a node of three; rail 1 has one GPU only."""
    pxn = topology({"base": "h800-2x3", "gpus_per_nic": 2, "cross_rail": "nvlink"})
    assert pxn.path(1, 5)[2] == ("gpu", 2)
    assert pxn.path(2, 3)[2] == ("gpu", 0)


def test_one_leaf_for_each_node() -> None:
    plain = topology({"base": "h800-4x8", "leaf": "node", "oversubscription": 2})
    assert plain.path(0, 8)[2:5] == (("leaf", 0, 0), ("spine",), ("leaf", 1, 0))
    assert plain.graph.edges[("spine",), ("leaf", 3, 0)]["bandwidth"] == 8 * 50e9 / 2


def test_a_domain_of_72() -> None:
    nvl72 = topology("gb200-1x72")
    assert kinds(nvl72.path(0, 71)) == ["gpu", "nvswitch", "gpu"]
    assert nvl72.graph.number_of_edges() == 2 * 72


def test_a_mesh_splits_a_gpus_bandwidth_over_its_links() -> None:
    for nodes in (1, 2):
        mesh = topology(f"mi300x-{nodes}x8")
        assert mesh.path(0, 5) == (("gpu", 0), ("gpu", 5))
        assert mesh.graph.edges[("gpu", 0), ("gpu", 5)]["bandwidth"] == 64e9
    assert topology("mi300x-1x4").graph.edges[("gpu", 0), ("gpu", 3)]["bandwidth"] == 64e9
    four = topology({"base": "a100-1x4", "intra_node": "mesh"})
    assert four.graph.edges[("gpu", 0), ("gpu", 3)]["bandwidth"] == 100e9


def test_a_pcie_tree_meets_at_the_host_and_carries_what_goes_to_the_cards() -> None:
    tree = topology("l40s-2x8")
    assert kinds(tree.path(0, 3)) == ["gpu", "pcie", "gpu"]
    assert kinds(tree.path(0, 4)) == ["gpu", "pcie", "host", "pcie", "gpu"]
    assert tree.path(7, 13) == (
        *(("gpu", 7), ("pcie", 0, 1), ("nic", 0, 3), ("leaf", 0, 3)),
        *(("spine",), ("leaf", 0, 2), ("nic", 1, 2), ("pcie", 1, 1), ("gpu", 13)),
    )


def test_a_group_takes_its_nodes_and_its_share_of_the_uplinks() -> None:
    half = topology({"base": "h800-4x8", "oversubscription": 2}, gpus=16)
    assert {vertex[1] for vertex in half.graph if vertex[0] == "nvswitch"} == {0, 1}
    assert half.graph.edges[("leaf", 0, 0), ("spine",)]["bandwidth"] == 2 * 50e9 / 2
    assert len(build_routes(topology("h800-4x8", gpus=4)).latency_GG) == 4


@pytest.mark.parametrize("gpu", preset_names("gpus"))
def test_every_link_of_every_preset_has_bandwidth_latency_and_source(gpu: str) -> None:
    built = topology(f"{gpu}-2x8")
    for _, _, link in built.graph.edges(data=True):
        assert link["bandwidth"] > 0
        assert link["latency"] >= 0
        assert link["source"]


@given(cluster=clusters())
def test_every_accepted_cluster_is_connected_along_its_paths(cluster: Cluster) -> None:
    built = build_topology(cluster, fabric_of(cluster), cluster.gpus)
    if cluster.gpus > 1:
        assert nx.is_strongly_connected(built.graph)
    for sender, receiver in itertools.permutations(range(cluster.gpus), 2):
        path = built.path(sender, receiver)
        assert (path[0], path[-1]) == (("gpu", sender), ("gpu", receiver))
        assert len(set(path)) == len(path)
        assert all(built.graph.has_edge(*ends) for ends in itertools.pairwise(path))
        crosses = sender // cluster.gpus_per_node != receiver // cluster.gpus_per_node
        assert crosses == any(vertex[0] == "leaf" for vertex in path)
        assert seconds(built, path) >= (cluster.nic if crosses else cluster.gpu.nvlink).latency


@given(cluster=clusters(), data=st.data())
def test_auto_takes_ports_only_where_every_link_that_can_bind_is_one_gpus_own(
    cluster: Cluster, data: st.DataObject
) -> None:
    P = cluster.gpus_per_node
    gpus = data.draw(st.sampled_from(sorted({*range(1, P), *range(P, cluster.gpus + 1, P)})))
    if network_name("auto", cluster, gpus) == "fluid":
        return
    routes = build_routes(build_topology(cluster, fabric_of(cluster), gpus))
    for sender, receiver in itertools.permutations(range(gpus), 2):
        ends = [routes.links[link] for link in routes.link_GGH[sender, receiver] if link != NO_LINK]
        ours = {("gpu", sender), ("gpu", receiver)}
        cards = {("nic", gpu // P, gpu % P) for gpu in (sender, receiver)}
        assert all(set(pair) & (ours | cards) for pair in ends)
        inside = sender // P == receiver // P
        # A GPU's traffic inside the node and outside it never meets.
        assert all(any(vertex[0] == "nvswitch" for vertex in pair) == inside for pair in ends)


def test_auto_stays_with_ports_on_boards_with_a_card_for_each_gpu() -> None:
    named = {
        gpu: network_name("auto", load_cluster(f"{gpu}-4x8", NOWHERE), 32) for gpu in preset_names("gpus")
    }
    assert {gpu for gpu, name in named.items() if name == "fluid"} == {"l40s", "mi300x"}
    shared = load_cluster({"base": "h800-4x8", "gpus_per_nic": 2}, NOWHERE)
    assert network_name("auto", shared, 32) == "fluid"
    assert network_name("auto", shared, 8) == "ports"
    assert network_name("ports", shared, 32) == "ports"


def test_links_that_others_spare_are_left_out() -> None:
    """A GPU's link to its card, and an uplink that is not oversubscribed, are never the narrowest."""
    h800 = build_routes(topology("h800-4x8"))
    assert len(h800.links) == 4 * 32
    assert (h800.link_GGH[0, 31] != NO_LINK).sum() == 2
    thin = build_routes(topology({"base": "h800-4x8", "oversubscription": 2}))
    assert len(thin.links) == 4 * 32 + 2 * 8
    assert np.bincount(thin.bandwidth_L.astype(int) // 10**9)[[50, 100, 200]].tolist() == [64, 16, 64]


def test_a_group_too_large_for_routes_by_pair_is_refused() -> None:
    cluster = load_cluster({"base": "mi300x-64x8", "nodes": 65}, NOWHERE)
    with pytest.raises(
        SpecError, match=rf"^network: fluid holds at most {MAX_FLUID_GPUS} GPUs; .* \(got '520 GPUs'\)"
    ):
        NETWORKS["auto"](cluster, fabric_of(cluster), 520)
