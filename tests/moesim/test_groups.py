"""What attention groups reach of a GPU's links, worked out by hand for each kind of node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moesim.deployment.deployment import deploy
from moesim.hardware.groups import attention_group_s, group_share
from moesim.spec.cluster import Cluster, load_cluster
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from tests.moesim.flows import clusters
from tests.moesim.tiny import TINY, tiny_scenario, write_scenario
from tests.tolerance import rounding


def share(cluster: object, gpus: int, tp: int) -> float:
    return group_share(load_cluster(cluster, Source(None, None, {})), gpus, tp)


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_a_switch_gives_all_of_a_gpus_bandwidth_to_any_group(tp: int) -> None:
    assert share("h800-2x8", 8, tp) == 1.0


@pytest.mark.parametrize(("tp", "links"), [(2, 1), (4, 3), (8, 7)])
def test_in_a_mesh_a_group_has_the_links_among_its_own(tp: int, links: int) -> None:
    """Straight to each other they use all of them; a ring would use one."""
    assert share("mi300x-2x8", 8, tp) == pytest.approx(links / 7)


@pytest.mark.parametrize(
    ("host", "tp", "expected"),
    [
        (8, 4, 1.0),  # a group at each switch never meets the host
        (32, 8, 1.0),  # a ring crosses the host once each way, as fast as a port
        (8, 8, 8 / 32),  # a ring again: straight, 16 flows would share a link to the host
        (8, 2, 1.0),
    ],
)
def test_a_group_over_two_pcie_switches_meets_at_the_host(host: int, tp: int, expected: float) -> None:
    """Two switches of four GPUs with 32 GB/s each."""
    cluster = {"base": "l40s-1x8", "host": {"bandwidth": f"{host} GB/s"}}
    assert share(cluster, 8, tp) == pytest.approx(expected)


@given(cluster=clusters(), tp=st.integers(1, 5))
def test_a_share_is_a_share_and_one_for_whole_boards(cluster: Cluster, tp: int) -> None:
    P = cluster.gpus_per_node
    assume(P % tp == 0)
    found = group_share(cluster, P, tp)
    assert 0 < found <= 1
    if tp == 1 or (tp == P and cluster.intra_node == "mesh" and cluster.mesh_peers is None):
        assert found == pytest.approx(1.0)


def test_attention_takes_longer_where_a_group_has_some_of_the_links(tmp_path: Path) -> None:
    seconds = []
    for changes in ({}, {"intra_node": "mesh", "mesh_peers": 4}):
        fields = tiny_scenario(cluster=TINY["cluster"] | changes, parallelism={"ep": 4, "tp": 2})
        deployment = deploy(load_scenario(str(write_scenario(tmp_path, fields))))
        seconds.append(
            attention_group_s(deployment.pricing.kernels(deployment.scenario.profile), np.array([4] * 4))
        )
    latency = 2 * 1e-6
    np.testing.assert_allclose(seconds[1] - latency, 4 * (seconds[0] - latency), rtol=rounding(10**6))
