"""Max-min fairness against a naive oracle, its capacity and conservation, and `fluid` against `ports`."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.deployment.deployment import deploy
from moesim.hardware.fair_share import share_links
from moesim.hardware.fluid import EPSILON, Fluid
from moesim.hardware.network import Fabric
from moesim.hardware.networks import NETWORKS
from moesim.hardware.routes import Routes, build_routes
from moesim.hardware.topology import build_topology
from moesim.simulation.run import run
from moesim.spec.cluster import Cluster, load_cluster
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from tests.moesim.flows import Traffic, clusters, collectives, fabric_of, naive_ends, ports, traffics
from tests.moesim.tiny import TINY, tiny_scenario, write_scenario
from tests.tolerance import rounding

FloatArray = NDArray[np.float64]


def ends(traffic: Traffic, epsilon: float = 0.0) -> tuple[FloatArray, FloatArray]:
    end_F, peak_L = share_links(
        traffic.start_F, traffic.bytes_F, traffic.weight_F, traffic.link_FH, traffic.bandwidth_L, epsilon
    )
    return end_F, peak_L


def fluid(cluster: Cluster, fabric: Fabric, epsilon: float = EPSILON) -> Fluid:
    return Fluid(build_routes(build_topology(cluster, fabric, cluster.gpus)), epsilon)


def board(gpus: int, bandwidth: float, latency: float = 0.0) -> Fluid:
    """GPUs around a switch."""
    routes = build_routes(build_topology(_cluster(1, gpus), Fabric(gpus, bandwidth, 1.0, latency, 0.0), gpus))
    return Fluid(routes, 0.0)


def two_nodes(nvlink: float, nic: float, nvlink_latency: float = 0.0, nic_latency: float = 0.0) -> Fluid:
    """Two nodes of two GPUs."""
    fabric = Fabric(2, nvlink, nic, nvlink_latency, nic_latency)
    return Fluid(build_routes(build_topology(_cluster(2, 2), fabric, 4)), 0.0)


def _cluster(nodes: int, per_node: int) -> Cluster:
    return load_cluster(f"h800-{nodes}x{per_node}", Source(None, None, {}))


@given(traffic=traffics())
def test_ends_are_those_of_filling_from_scratch_at_every_event(traffic: Traffic) -> None:
    np.testing.assert_allclose(ends(traffic)[0], naive_ends(traffic), rtol=rounding(10**6))


@given(traffic=traffics(flows=40, links=12), epsilon=st.sampled_from([0.0, EPSILON, 0.1]))
def test_no_link_is_above_its_capacity_at_any_time(traffic: Traffic, epsilon: float) -> None:
    end_F, peak_L = ends(traffic, epsilon)
    assert (peak_L <= traffic.bandwidth_L * (1 + 1e-12)).all()
    for link, bandwidth in enumerate(traffic.bandwidth_L):
        uses_F = np.array([link in path for path in traffic.paths()])
        if not uses_F.any():
            assert peak_L[link] == 0
            continue
        # All bytes fit between the first start and the last end, and those of later starts after these.
        for start in np.unique(traffic.start_F[uses_F]):
            later_F = uses_F & (traffic.start_F >= start)
            length = end_F[later_F].max() - start
            assert traffic.bytes_F[later_F].sum() <= bandwidth * length * (1 + 1e-9)


@given(traffic=traffics(flows=40, links=12), epsilon=st.sampled_from([1e-4, EPSILON, 1e-2, 0.1]))
def test_batched_ends_differ_by_no_more_than_epsilon_allows(traffic: Traffic, epsilon: float) -> None:
    """Found in 6,000 random cases: at most 1.25 times epsilon, relative to the time since the first start."""
    exact_F, batched_F = ends(traffic)[0], ends(traffic, epsilon)[0]
    since_F = exact_F - traffic.start_F.min()
    assert (np.abs(batched_F - exact_F) <= 3 * epsilon * since_F + 1e-12).all()


@given(traffic=traffics(links=1), epsilon=st.sampled_from([EPSILON, 0.1]))
def test_on_one_link_batching_never_helps(traffic: Traffic, epsilon: float) -> None:
    assert ends(traffic, epsilon)[0].max() >= ends(traffic)[0].max() * (1 - 1e-12)


@given(traffic=traffics(), seed=st.integers(0, 2**32))
def test_neither_order_nor_clock_matters(traffic: Traffic, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(traffic.start_F))
    shuffled = Traffic(
        traffic.start_F[order] + 64.0,
        traffic.bytes_F[order],
        traffic.weight_F[order],
        traffic.link_FH[order],
        traffic.bandwidth_L,
    )
    np.testing.assert_allclose(ends(shuffled)[0] - 64.0, ends(traffic)[0][order], rtol=rounding(10**6))


@given(traffic=traffics(flows=8))
def test_a_weight_stands_for_so_many_equal_flows(traffic: Traffic) -> None:
    times = traffic.weight_F.astype(int)
    split = Traffic(
        np.repeat(traffic.start_F, times),
        np.repeat(traffic.bytes_F / traffic.weight_F, times),
        np.ones(times.sum()),
        np.repeat(traffic.link_FH, times, axis=0),
        traffic.bandwidth_L,
    )
    np.testing.assert_allclose(ends(split)[0], np.repeat(ends(traffic)[0], times), rtol=rounding(10**6))


def test_what_one_flow_leaves_goes_to_those_it_held_back() -> None:
    """Links of 1, 2 and 2 B/s; A takes the first two, B the last two, C the first, D the last.

    At first A and C have 1/2 each, B and D 1 each. C ends at 2; A then takes all of its first link, which
    leaves 1 of the second to B.
    """
    traffic = Traffic(
        np.zeros(4),
        np.array([3.0, 4.0, 1.0, 4.0]),
        np.ones(4),
        np.array([[0, 1], [1, 2], [0, -1], [2, -1]], np.int32),
        np.array([1.0, 2.0, 2.0]),
    )
    end_F, peak_L = ends(traffic)
    assert end_F.tolist() == [4.0, 4.0, 2.0, 4.0]
    assert peak_L.tolist() == [1.0, 2.0, 2.0]


def test_two_senders_share_a_port_and_a_late_one_slows_the_first() -> None:
    """10 bytes to GPU 2 at 1 B/s, half done when GPU 1 comes at 5 with 2 more: these end at 9, all at 12."""
    bytes_GG = np.zeros((3, 3))
    bytes_GG[0, 2], bytes_GG[1, 2] = 10.0, 2.0
    flows = board(3, 1.0).flows(np.array([0.0, 5.0, 0.0]), bytes_GG, np.zeros((3, 3)))
    assert flows.end_F.tolist() == [12.0, 9.0]
    end_G = board(3, 1.0, latency=0.5).collective(np.array([0.0, 5.0, 0.0]), bytes_GG, np.zeros((3, 3)))
    assert end_G.tolist() == [12.5, 9.5, 12.5]


def test_a_flow_waits_for_its_receiver_to_leave_the_collective_before() -> None:
    """GPU 1 is free at 4: it has its 6 bytes at 10. GPU 2 is free at once and shares GPU 0's port until 3."""
    bytes_GG = np.zeros((3, 3))
    bytes_GG[0, 1], bytes_GG[0, 2] = 6.0, 3.0
    flows = board(3, 1.0).flows(np.zeros(3), bytes_GG, np.zeros((3, 3)), np.array([0.0, 4.0, 0.0]))
    assert flows.start_F.tolist() == [4.0, 0.0]
    assert flows.end_F.tolist() == [10.0, 3.0]


def test_without_bytes_all_leave_when_the_last_has_entered() -> None:
    none = np.zeros((2, 2))
    assert board(2, 1.0).collective(np.array([1.0, 3.0]), none, none).tolist() == [3.0, 3.0]
    alone = np.zeros((1, 1))
    assert board(1, 1.0).collective(np.array([2.0]), alone, alone).tolist() == [2.0]


def test_a_relay_starts_with_what_feeds_it_and_arrives_after_it() -> None:
    """GPU 0 → card → GPU 2 → NVLink → GPU 3: the slower stage binds, not the sum of both."""
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, 2], second[2, 3] = 100.0, 100.0
    start = np.array([3.0, 0.0, 1.0, 0.0])
    assert two_nodes(5.0, 10.0).flows(start, first, second).start_F.tolist() == [3.0, 3.0]
    assert two_nodes(50.0, 10.0).collective(start, first, second)[3] == 13.0
    assert two_nodes(5.0, 10.0).collective(start, first, second)[3] == 23.0
    assert two_nodes(50.0, 10.0, 0.25, 1.0).collective(start, first, second)[3] == 14.25


def test_hops_of_a_pair_that_start_together_are_one_flow() -> None:
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, 2], first[2, 3], second[2, 3] = 10.0, 4.0, 6.0
    flows = two_nodes(1.0, 1.0).flows(np.zeros(4), first, second)
    assert flows.bytes_F.tolist() == [10.0, 10.0]
    assert flows.weight_F.tolist() == [1.0, 2.0]
    apart = two_nodes(1.0, 1.0).flows(np.array([0.5, 0.0, 0.0, 0.0]), first, second)
    assert sorted(zip(apart.start_F, apart.bytes_F, strict=True)) == [(0.0, 4.0), (0.5, 6.0), (0.5, 10.0)]


@given(cluster=clusters(), data=st.data(), degraded=st.booleans())
def test_no_gpu_leaves_earlier_than_with_ports(cluster: Cluster, data: st.DataObject, degraded: bool) -> None:
    if cluster.cross_rail == "nvlink":  # then a GPU's traffic may leave over the cards of others
        return
    case, fabric = data.draw(collectives(cluster.gpus)), fabric_of(cluster)
    if degraded:
        part_G = st.lists(st.sampled_from([0.25, 1.0]), min_size=cluster.gpus, max_size=cluster.gpus)
        nvlink_G, nic_G = np.array(data.draw(part_G)), np.array(data.draw(part_G))
        fabric = dataclasses.replace(fabric, nvlink_G=nvlink_G, nic_G=nic_G)
    busy_G = np.array(data.draw(st.lists(st.integers(0, 6), min_size=cluster.gpus, max_size=cluster.gpus)))
    for epsilon in (0.0, 0.1):
        for free_G in (None, busy_G.astype(float)):
            end_G = fluid(cluster, fabric, epsilon).collective(*case, free_G)
            assert (end_G >= ports(*case, fabric, free_G) * (1 - 1e-12)).all()


@given(cluster=clusters(), data=st.data())
def test_bytes_sent_are_bytes_received_and_no_link_is_overloaded(
    cluster: Cluster, data: st.DataObject
) -> None:
    start, first, second = data.draw(collectives(cluster.gpus))
    model = fluid(cluster, fabric_of(cluster))
    flows = model.flows(start, first, second)
    bytes_GG = np.zeros_like(first)
    np.add.at(bytes_GG, (flows.sender_F, flows.receiver_F), flows.bytes_F)
    np.testing.assert_array_equal(bytes_GG, first + second)
    assert (flows.end_F > flows.start_F).all()
    assert (flows.start_F >= start[flows.sender_F]).all()
    assert (flows.peak_L <= model.routes.bandwidth_L * (1 + 1e-12)).all()


@given(cluster=clusters(), data=st.data())
def test_links_left_out_change_no_result(cluster: Cluster, data: st.DataObject) -> None:
    case = data.draw(collectives(cluster.gpus))
    whole = build_topology(cluster, fabric_of(cluster), cluster.gpus)
    kept = build_routes(whole)
    number = {pair: i for i, pair in enumerate(whole.graph.edges)}
    link_GGH = np.full((cluster.gpus, cluster.gpus, 12), -1, np.int32)
    for pair in itertools.permutations(range(cluster.gpus), 2):
        links = [number[step] for step in itertools.pairwise(whole.path(*pair))]
        link_GGH[pair][: len(links)] = links
    bandwidth_L = np.array([link["bandwidth"] for _, _, link in whole.graph.edges(data=True)], float)
    every = Routes(kept.gpus_per_node, tuple(number), bandwidth_L, link_GGH, kept.latency_GG)
    np.testing.assert_allclose(
        Fluid(kept, 0.0).collective(*case), Fluid(every, 0.0).collective(*case), rtol=rounding(10**6)
    )


@pytest.mark.parametrize("name", ["h800-1x8", "h800-4x8", "a100-2x4", "mi300x-1x8", "gb200-1x72"])
@pytest.mark.parametrize("relayed", [False, True])
def test_uniform_traffic_that_starts_together_agrees_with_ports(name: str, relayed: bool) -> None:
    cluster = load_cluster(name, Source(None, None, {}))
    G, fabric = cluster.gpus, fabric_of(cluster)
    node_G, rail_G = np.divmod(np.arange(G), cluster.gpus_per_node)
    inside_GG = (node_G[:, None] == node_G) & (rail_G[:, None] != rail_G)
    rails_GG = (node_G[:, None] != node_G) & (rail_G[:, None] == rail_G)
    if relayed:
        first, second = 5e6 * (inside_GG | rails_GG), 7e6 * inside_GG
    else:
        # Across the spine everyone sends to everyone; that adds its latency.
        first, second = 5e6 * (1 - np.eye(G)), np.zeros((G, G))
    start = np.full(G, 2.0)
    spine = cluster.nic.spine_latency if cluster.nodes > 1 and not relayed else 0.0
    expected = ports(start, first, second, fabric)
    found = NETWORKS["fluid"](cluster, fabric, G).collective(start, first, second)
    assert (found >= expected * (1 - 1e-12)).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=spine + rounding(10**6) * (expected.max() - 2.0))


def test_oversubscribed_uplinks_and_shared_cards_take_their_time() -> None:
    """Two nodes of two; all cross rails. Each card 1 B/s; four flows of 6 bytes."""
    crossing = np.zeros((4, 4))
    for sender, receiver in ((0, 3), (1, 2), (2, 1), (3, 0)):
        crossing[sender, receiver] = 6.0
    none, start = np.zeros((4, 4)), np.zeros(4)
    base = {"base": "h800-2x2", "nic": {"spine_latency": 0}}
    fabric = Fabric(2, 100.0, 1.0, 0.0, 0.0)
    for changes, expected in (
        ({}, 6.0),
        ({"oversubscription": 3}, 18.0),
        ({"gpus_per_nic": 2}, 12.0),
        # GPU 1's bytes reach card 0 over NVLink and leave from it alone: nothing is shared.
        ({"cross_rail": "nvlink", "oversubscription": 3}, 6.0),
    ):
        cluster = load_cluster(base | changes, Source(None, None, {}))
        end_G = NETWORKS["fluid"](cluster, fabric, 4).collective(start, crossing, none)
        np.testing.assert_allclose(end_G, expected, rtol=rounding(1000))


@pytest.mark.parametrize("mode", ["per_expert", "per_gpu", "per_node"])
def test_a_step_takes_no_less_than_with_ports_and_is_the_same_again(tmp_path: Path, mode: str) -> None:
    dispatch = TINY["dispatch"] | {"mode": mode}
    ends = {}
    for network in ("ports", "fluid", "fluid again"):
        fields = tiny_scenario(network=network.split()[0], dispatch=dispatch)
        deployment = deploy(load_scenario(str(write_scenario(tmp_path, fields))))
        assert deployment.pricing.network_name == network.split()[0]
        ends[network] = run(deployment).timeline.end_s_N
    assert ends["fluid"].max() >= ends["ports"].max()
    np.testing.assert_array_equal(ends["fluid"], ends["fluid again"])


def test_auto_shares_the_links_that_a_scenario_says_are_shared(tmp_path: Path) -> None:
    cluster = TINY["cluster"] | {"gpus_per_nic": 2}
    fields = {"ports": tiny_scenario(), "fluid": tiny_scenario(cluster=cluster)}
    for expected, scenario in fields.items():
        assert deploy(load_scenario(str(write_scenario(tmp_path, scenario)))).pricing.network_name == expected
