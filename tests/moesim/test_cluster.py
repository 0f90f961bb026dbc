"""Clusters: presets by name, inline fields, and what is refused where."""

from __future__ import annotations

from typing import Any

import pytest

from moesim.errors import SpecError
from moesim.spec.base import validate
from moesim.spec.cluster import MAX_GPUS, Cluster, Gpu, load_cluster
from moesim.spec.presets import preset_names
from moesim.spec.yaml_source import Source, parse_yaml

NOWHERE = Source(None, None, {})

CPU: dict[str, Any] = {
    "name": "two CPU ranks",
    "gpu": {
        "name": "core",
        "memory": "4 GiB",
        "memory_bandwidth": "10 GB/s",
        "flops": {"fp32": "134 GFLOPS"},
        "sms": 1,
        "nvlink": {"bandwidth": "1 GB/s", "latency": "100 us"},
    },
    "gpus_per_node": 2,
    "nic": {"bandwidth": "1 GB/s", "latency": "100 us"},
}


def inside(text: str) -> tuple[Any, Source, tuple[str, ...]]:
    """The arguments of load_cluster for the value of ``cluster:`` in a file."""
    source = parse_yaml(text, "s.yaml")
    return source.value["cluster"], source, ("cluster",)


def test_every_gpu_names_clusters_of_up_to_64_nodes() -> None:
    for gpu in preset_names("gpus"):
        cluster = load_cluster(f"{gpu}-64x8", NOWHERE)
        assert (cluster.name, cluster.nodes, cluster.gpus_per_node, cluster.gpus) == (
            f"{gpu}-64x8",
            64,
            8,
            512,
        )


def test_links_are_those_of_the_data_sheets() -> None:
    h800, h100, a100 = (load_cluster(f"{gpu}-1x8", NOWHERE) for gpu in ("h800", "h100", "a100"))
    assert [c.gpu.nvlink.bandwidth for c in (h800, h100, a100)] == [200e9, 450e9, 300e9]
    assert [c.nic.bandwidth for c in (h800, h100, a100)] == [50e9, 50e9, 25e9]
    assert h800.gpu.flops == h100.gpu.flops
    assert h100.gpu.peak_flops("fp8") == 1979e12


def test_a_machine_without_gpus_can_be_written_inline() -> None:
    cluster = load_cluster(CPU, NOWHERE)
    assert (cluster.nodes, cluster.gpus, cluster.gpu.memory) == (1, 2, 4 * 2**30)
    assert validate(Cluster, cluster.model_dump(mode="json")) == cluster


def test_parts_may_be_presets() -> None:
    cluster = load_cluster({"gpu": "h200", "nic": "cx7", "nodes": 2, "gpus_per_node": 4}, NOWHERE)
    assert cluster.gpu == load_cluster("h200-1x8", NOWHERE).gpu
    assert cluster.nic.bandwidth == 50e9


def test_a_base_gives_what_is_not_written() -> None:
    base = load_cluster("h800-4x8", NOWHERE)
    cluster = load_cluster(
        {"base": "h800-4x8", "nodes": 2, "gpu": {"nvlink": {"bandwidth": "100 GB/s"}}}, NOWHERE
    )
    slower = base.gpu.nvlink.model_copy(update={"bandwidth": 100e9})
    assert cluster.gpu == base.gpu.model_copy(update={"nvlink": slower})
    assert (cluster.nodes, cluster.gpus_per_node, cluster.nic) == (2, 8, base.nic)


def test_a_dtype_without_figure_is_refused_with_the_known_ones() -> None:
    gpu: Gpu = load_cluster(CPU, NOWHERE).gpu
    with pytest.raises(
        SpecError, match=r"GPU core has no figure for this dtype; .*known: fp32 \(got 'fp8'\)"
    ):
        gpu.peak_flops("fp8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster: h1000-4x8", "s.yaml:1: cluster: no such gpu preset; did you mean 'h100'? known: a100,"),
        ("\ncluster: h800", "s.yaml:2: cluster: must be <gpu>-<nodes>x<gpus per node>, such as h800-4x8"),
        ("cluster: h800-0x8", "s.yaml:1: cluster: a preset has 1 to 64 nodes of 1 to 8 GPUs"),
        ("cluster: h800-65x8", "s.yaml:1: cluster: a preset has 1 to 64 nodes"),
        ("cluster: h800-4x16", "s.yaml:1: cluster: a preset has 1 to 64 nodes"),
        ("cluster: ../models/x-1x1", "s.yaml:1: cluster: no such gpu preset"),
        ("cluster: 5", "s.yaml:1: cluster: must be a mapping of fields (got 5)"),
        ("cluster: {base: h800-1x8,\n nodes: 0}", "s.yaml:2: cluster.nodes: must be at least 1 (got 0)"),
        ("cluster:\n  base: h8-1x8", "s.yaml:2: cluster.base: no such gpu preset"),
        ("cluster:\n  base: [1]", "s.yaml:2: cluster.base: must be a name (got [1])"),
        ("cluster:\n  gpu: h8\n", "s.yaml:2: cluster.gpu: no such gpu preset"),
        (
            "cluster:\n  base: h800-1x8\n  nic: cx5\n",
            "s.yaml:3: cluster.nic: no such nic preset; did you mean 'cx7'?",
        ),
        (
            "cluster:\n  base: h800-1x8\n  gpu:\n    flops: {fp12: 1 TFLOPS}\n",
            "s.yaml:4: cluster.gpu.flops.fp12: must be one of 'fp32',",
        ),
        (
            "cluster:\n  base: h800-1x8\n  nic:\n    bandwidth: 0 GB/s\n",
            "s.yaml:4: cluster.nic.bandwidth: must be at least 1",
        ),
        (
            "cluster:\n  base: h800-1x8\n  nic:\n    bandwith: 1 GB/s\n",
            "s.yaml:4: cluster.nic.bandwith: unknown key; did you mean 'bandwidth'? known: bandwidth,",
        ),
        (
            "cluster:\n  base: h800-1x8\n  nodes: 100000\n",
            f"s.yaml:3: cluster.nodes: nodes × gpus_per_node must be at most {MAX_GPUS}",
        ),
    ],
)
def test_what_is_refused_names_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_cluster(*inside(text))
    assert str(caught.value).startswith(message)


def test_a_gpu_computes_in_some_dtype() -> None:
    without = CPU | {"gpu": CPU["gpu"] | {"flops": {}}}
    with pytest.raises(SpecError, match=r"^gpu\.flops: must name at least one dtype"):
        load_cluster(without, NOWHERE)


def test_boards_are_joined_as_their_makers_join_them() -> None:
    h100, gb200, mi300x, l40s = (
        load_cluster(name, NOWHERE) for name in ("h100-4x8", "gb200-2x72", "mi300x-1x8", "l40s-1x8")
    )
    assert [c.intra_node for c in (h100, gb200, mi300x, l40s)] == ["nvswitch", "nvswitch", "mesh", "pcie"]
    assert gb200.gpus == 144
    assert mi300x.mesh_peers == 7
    assert (l40s.switches_per_node, l40s.nics_per_node) == (2, 4)
    assert (h100.nodes_of_leaf, h100.leaves_per_rail, h100.oversubscription) == (4, 1, 1.0)


def test_roce_is_slower_than_infiniband() -> None:
    """82 bytes of headers, checksums and gaps to each 4096 of payload."""
    ib, roce = (load_cluster({"base": "h100-2x8", "nic": nic}, NOWHERE).nic for nic in ("cx7", "cx7-roce"))
    assert (roce.bandwidth, ib.efficiency) == (ib.bandwidth, 1.0)
    assert roce.efficiency == pytest.approx(4096 / (4096 + 82), abs=0.001)
    assert roce.latency > ib.latency
    assert roce.spine_latency > ib.spine_latency


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            "intra_node: torus",
            "cluster.intra_node: must be one of 'nvswitch', 'mesh' or 'pcie' (got 'torus')",
        ),
        ("mesh_peers: 7", "cluster.mesh_peers: belongs to intra_node: mesh (got 'nvswitch')"),
        ("{intra_node: mesh, gpus_per_switch: 4}", "cluster.gpus_per_switch: belongs to intra_node: pcie"),
        ("{intra_node: mesh, host: {bandwidth: 1}}", "cluster.host: belongs to intra_node: pcie"),
        (
            "{intra_node: mesh, mesh_peers: 6}",
            "cluster.mesh_peers: must be at least the 7 other GPUs of a node",
        ),
        (
            "{intra_node: pcie, gpus_per_switch: 4}",
            "cluster.gpus_per_switch: makes 2 PCIe switches in a node, which nothing joins: the link host,",
        ),
        (
            "{intra_node: pcie, gpus_per_switch: 4, host: {bandwidth: -1 GB/s}}",
            "cluster.host.bandwidth: must be at least 1",
        ),
        ("gpus_per_nic: 0", "cluster.gpus_per_nic: must be at least 1 (got 0)"),
        ("oversubscription: 0.5", "cluster.oversubscription: must be at least 1.0 (got 0.5)"),
        ("oversubscription: .inf", "cluster.oversubscription: must be finite"),
        ("nic: {efficiency: 1.1}", "cluster.nic.efficiency: must be at most 1.0 (got 1.1)"),
        (
            "{leaf: node, cross_rail: nvlink}",
            "cluster.cross_rail: nvlink needs leaf: rail (got 'leaf: node')",
        ),
        ("{intra_node: pcie, cross_rail: nvlink}", "cluster.cross_rail: nvlink needs a node with NVLink"),
        ("spine: false", "cluster.spine: nothing joins the rails: that would need cross_rail: nvlink"),
        (
            "{spine: false, leaf: node}",
            "cluster.spine: nothing joins the 4 leaves, each of 1 nodes (got False)",
        ),
        (
            "{spine: false, cross_rail: nvlink, nodes_per_leaf: 3}",
            "cluster.spine: nothing joins the 2 leaves, each of 3 nodes (got False)",
        ),
        (
            "{spine: false, oversubscription: 2, cross_rail: nvlink}",
            "cluster.oversubscription: is of uplinks to a spine, and there is none (got 2.0)",
        ),
    ],
)
def test_links_that_contradict_each_other_are_refused(fields: str, message: str) -> None:
    braced = fields if fields.startswith("{") else f"{{{fields}}}"
    with pytest.raises(SpecError) as caught:
        load_cluster(*inside(f"cluster:\n  {{base: h800-4x8, {braced[1:]}"))
    assert str(caught.value).startswith(f"s.yaml:2: {message}")


@pytest.mark.parametrize(
    "fields",
    [
        {"spine": False, "cross_rail": "nvlink"},
        {"spine": False, "leaf": "node", "nodes_per_leaf": 4},
        {"spine": False, "gpus_per_nic": 8},
        {"spine": False, "nodes": 1, "oversubscription": 2},
    ],
)
def test_without_a_spine_one_leaf_or_the_nodes_must_join_the_cards(fields: dict[str, Any]) -> None:
    assert not load_cluster({"base": "h800-4x8"} | fields, NOWHERE).spine
