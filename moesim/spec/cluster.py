"""A cluster by its parts: nodes, GPUs, and the links between them, as far as costs use them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from moesim.errors import SpecError
from moesim.spec.base import Count, Flag, Number, Part, Strict, Text, fault, suggest, validate
from moesim.spec.dtypes import Dtype
from moesim.spec.presets import on_base, preset_names, preset_source
from moesim.spec.yaml_source import Loc, Source
from moesim.units import Bytes, BytesPerSecond, FlopPerSecond, Seconds

MAX_GPUS = 4096
"""Largest cluster: traffic is kept as a matrix GPU × GPU."""

MAX_PRESET_NODES = 64
_BOARD: dict[str, Any] = {
    "gpus_per_node": 8,
    "nic": "cx7",
    "source": "eight-way HGX board, one ConnectX-7 for each GPU, as in NVIDIA DGX H100",
}
"""What a GPU stands in unless ``presets/systems`` knows better: an HGX board, a ConnectX-7 for each GPU."""


class Link(Strict):
    """One GPU's link: ``bandwidth`` in one direction, ``latency`` of the smallest message."""

    bandwidth: BytesPerSecond
    latency: Seconds = 0.0
    source: Text = ""


class Nic(Link):
    """A network card: InfiniBand and RoCE differ in what headers leave of the line, and in latency.

    Attributes:
        efficiency: share of ``bandwidth`` that the protocol leaves to payload.
        spine_latency: further seconds of a path that leaves its leaf switch.
    """

    efficiency: Part = 1.0
    spine_latency: Seconds = 0.0


class Gpu(Strict):
    """One kind of GPU: what its data sheet promises, before any efficiency.

    ``flops`` are dense figures by dtype (no structured sparsity). ``nvlink`` is all that joins the GPU to
    the others of its node, one way: the link into the switch, all links of a mesh together, or PCIe.
    """

    name: Text
    memory: Bytes
    memory_bandwidth: BytesPerSecond
    flops: dict[Dtype, FlopPerSecond]
    sms: Count
    nvlink: Link
    source: Text = ""

    @model_validator(mode="after")
    def _computes(self) -> Self:
        if not self.flops:
            raise fault("must name at least one dtype", "flops", got="{}")
        return self

    def peak_flops(self, dtype: str) -> float:
        """FLOP per second in ``dtype``.

        Raises:
            SpecError: the GPU has no figure for ``dtype``.
        """
        for known, flops in self.flops.items():
            if known == dtype:
                return flops
        hint = suggest(dtype, self.flops)
        raise SpecError(
            f"GPU {self.name} has no figure for this dtype; {hint}known: {', '.join(self.flops)}",
            field="cluster.gpu.flops",
            got=dtype,
        )


class Cluster(Strict):
    """``nodes`` equal nodes of ``gpus_per_node`` GPUs. GPU ``g`` stands in node ``g // gpus_per_node``.

    Inside a node:

    - ``nvswitch``: every GPU has its link into a switch that never blocks (HGX boards, NVL72).
    - ``mesh``: every pair of GPUs has a link; a GPU's bandwidth is split over ``mesh_peers`` equal links.
    - ``pcie``: each ``gpus_per_switch`` GPUs share a PCIe switch; several switches meet at the host, over
      one link ``host`` each. Network cards hang at the switch of their first GPU.

    Between nodes: card ``i`` of a node serves its GPUs ``i·gpus_per_nic`` and following. Cards of equal
    index form a *rail*. With ``leaf: rail`` each rail has a leaf switch of its own, with ``leaf: node`` each
    node has one; a leaf serves ``nodes_per_leaf`` nodes. Leaves meet at the spine, if there is one, over
    uplinks of the bandwidth of their cards divided by ``oversubscription``. Traffic to another rail takes
    the sender's own card and the spine, or with ``cross_rail: nvlink`` goes first, inside the node, to the
    GPU of the receiver's rail (NCCL calls that PXN).
    """

    name: Text = "cluster"
    gpu: Gpu
    nodes: Count = 1
    gpus_per_node: Count
    nic: Nic
    intra_node: Literal["nvswitch", "mesh", "pcie"] = "nvswitch"
    mesh_peers: Count | None = None
    gpus_per_switch: Count | None = None
    host: Link | None = None
    gpus_per_nic: Count = 1
    leaf: Literal["rail", "node"] = "rail"
    nodes_per_leaf: Count | None = None
    spine: Flag = True
    oversubscription: Annotated[Number, Field(ge=1, le=1e6)] = 1.0
    cross_rail: Literal["spine", "nvlink"] = "spine"
    source: Text = ""

    @model_validator(mode="after")
    def _is_not_too_large(self) -> Self:
        if self.gpus > MAX_GPUS:
            raise fault(f"nodes × gpus_per_node must be at most {MAX_GPUS}", "nodes", got=self.gpus)
        return self

    @model_validator(mode="after")
    def _node_holds_together(self) -> Self:
        for field, kind in (("mesh_peers", "mesh"), ("gpus_per_switch", "pcie"), ("host", "pcie")):
            if getattr(self, field) is not None and self.intra_node != kind:
                raise fault(f"belongs to intra_node: {kind}", field, got=self.intra_node)
        if self.mesh_peers is not None and self.mesh_peers < self.gpus_per_node - 1:
            others = self.gpus_per_node - 1
            raise fault(
                f"must be at least the {others} other GPUs of a node", "mesh_peers", got=self.mesh_peers
            )
        if self.intra_node == "pcie" and self.switches_per_node > 1 and self.host is None:
            raise fault(
                f"makes {self.switches_per_node} PCIe switches in a node, which nothing joins: "
                "the link host, from each of them to the host, is missing",
                "gpus_per_switch",
                got=self.gpus_per_switch,
            )
        return self

    @model_validator(mode="after")
    def _every_node_is_reached(self) -> Self:
        if self.cross_rail == "nvlink" and self.leaf != "rail":
            raise fault("nvlink needs leaf: rail", "cross_rail", got=f"leaf: {self.leaf}")
        if self.cross_rail == "nvlink" and self.intra_node == "pcie":
            raise fault("nvlink needs a node with NVLink", "cross_rail", got="intra_node: pcie")
        if self.spine or self.nodes == 1:
            return self
        if self.oversubscription != 1:
            raise fault(
                "is of uplinks to a spine, and there is none", "oversubscription", got=self.oversubscription
            )
        if self.leaves_per_rail > 1:
            leaves = self.leaves_per_rail
            raise fault(
                f"nothing joins the {leaves} leaves, each of {self.nodes_of_leaf} nodes", "spine", got=False
            )
        if self.leaf == "rail" and self.nics_per_node > 1 and self.cross_rail != "nvlink":
            raise fault("nothing joins the rails: that would need cross_rail: nvlink", "spine", got=False)
        return self

    @property
    def nics_per_node(self) -> int:
        """Network cards, and so rails."""
        return -(-self.gpus_per_node // self.gpus_per_nic)

    @property
    def switches_per_node(self) -> int:
        """PCIe switches of a node whose GPUs are joined by them."""
        return -(-self.gpus_per_node // (self.gpus_per_switch or self.gpus_per_node))

    @property
    def nodes_of_leaf(self) -> int:
        """Nodes under a leaf switch: by default all of them with ``rail``, one with ``node``."""
        return self.nodes_per_leaf or (self.nodes if self.leaf == "rail" else 1)

    @property
    def leaves_per_rail(self) -> int:
        """Leaf switches that a rail, or with ``leaf: node`` the cluster, is spread over."""
        return -(-self.nodes // self.nodes_of_leaf)

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return self.nodes * self.gpus_per_node


def load_cluster(value: Any, source: Source, at: Loc = ()) -> Cluster:
    """The cluster that ``value``, which stands at ``at`` in ``source``, describes.

    ``value`` is ``<gpu>-<nodes>x<gpus per node>`` for a GPU preset, such as ``h800-4x8``; or the fields
    themselves, where ``gpu`` and ``nic`` may be presets' names and ``base`` may name a cluster whose fields
    the others replace: ``{base: h800-4x8, nic: cx6}``.

    Raises:
        SpecError: unknown preset, or a field that breaks a rule.
    """
    if isinstance(value, str):
        return validate(Cluster, _preset(value, source, at))
    if isinstance(value, dict):
        if "base" in value:
            value = on_base(value, lambda name: load_cluster(name, source, (*at, "base")), source, at)
        value = dict(value)
        for key, kind in (("gpu", "gpus"), ("nic", "nics")):
            if isinstance(name := value.get(key), str):
                value[key] = preset_source(kind, name, (*at, key), source).value
    return validate(Cluster, value, source=source, at=at)


def _preset(name: str, source: Source, at: Loc) -> dict[str, Any]:
    """Fields of the cluster preset ``name``."""
    match = re.fullmatch(r"(.+)-(\d{1,9})x(\d{1,9})", name)
    if match is None:
        raise source.error(
            "must be <gpu>-<nodes>x<gpus per node>, such as h800-4x8, or inline fields; "
            f"GPUs: {', '.join(preset_names('gpus'))}",
            at,
            got=name,
        )
    gpu, nodes, per_node = match[1], int(match[2]), int(match[3])
    chip = preset_source("gpus", gpu, at, source).value
    system = preset_system(gpu)
    most = system.pop("gpus_per_node")
    if not 1 <= nodes <= MAX_PRESET_NODES or not 1 <= per_node <= most:
        raise source.error(
            f"a preset has 1 to {MAX_PRESET_NODES} nodes of 1 to {most} GPUs; write larger clusters inline",
            at,
            got=name,
        )
    return system | {"name": name, "gpu": chip, "nodes": nodes, "gpus_per_node": per_node}


def preset_system(gpu: str) -> dict[str, Any]:
    """Fields of a cluster of the GPU preset ``gpu``; ``gpus_per_node`` is the most that a node holds."""
    system = dict(preset_source("systems", gpu).value) if gpu in preset_names("systems") else {}
    fields = _BOARD | system
    return fields | {"nic": preset_source("nics", fields["nic"]).value}
