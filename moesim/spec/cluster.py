"""A cluster by its parts: nodes, GPUs, and the links between them, as far as costs use them."""

from __future__ import annotations

import re
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from moesim.errors import SpecError
from moesim.spec.base import Count, Strict, Text, fault, suggest, validate
from moesim.spec.model import Dtype
from moesim.spec.presets import on_base, preset_names, preset_source
from moesim.spec.yaml_source import Loc, Source
from moesim.units import Bytes, BytesPerSecond, FlopPerSecond, Seconds

MAX_GPUS = 4096
"""Largest cluster: traffic is kept as a matrix GPU × GPU."""

MAX_PRESET_NODES = 64
PRESET_NODE_GPUS = 8
"""All presets are GPUs of eight-way boards (HGX), each with a network card of its own."""

_NIC = {"a100": "cx6"}
"""Network cards of NVIDIA's own systems by GPU (DGX A100); all newer ones have ConnectX-7."""


class Link(Strict):
    """One GPU's link: ``bandwidth`` in one direction, ``latency`` of the smallest message."""

    bandwidth: BytesPerSecond
    latency: Seconds = 0.0
    source: Text = ""


class Gpu(Strict):
    """One kind of GPU: what its data sheet promises, before any efficiency.

    ``flops`` are dense figures by dtype (no structured sparsity). ``nvlink`` is the link into the node's
    switch; in a node without one, the PCIe link or whatever joins the GPUs.
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
    """``nodes`` equal nodes of ``gpus_per_node`` GPUs; each GPU has a network card ``nic`` of its own.

    GPU ``g`` stands in node ``g // gpus_per_node``; cards of equal index in their nodes form a rail.
    """

    name: Text = "cluster"
    gpu: Gpu
    nodes: Count = 1
    gpus_per_node: Count
    nic: Link

    @model_validator(mode="after")
    def _is_not_too_large(self) -> Self:
        if self.gpus > MAX_GPUS:
            raise fault(f"nodes × gpus_per_node must be at most {MAX_GPUS}", "nodes", got=self.gpus)
        return self

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return self.nodes * self.gpus_per_node

    @property
    def node_G(self) -> npt.NDArray[np.int32]:
        """Node of each GPU, shape [G]."""
        return np.repeat(np.arange(self.nodes, dtype=np.int32), self.gpus_per_node)


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
    if not 1 <= nodes <= MAX_PRESET_NODES or not 1 <= per_node <= PRESET_NODE_GPUS:
        raise source.error(
            f"a preset has 1 to {MAX_PRESET_NODES} nodes of 1 to {PRESET_NODE_GPUS} GPUs; "
            "write larger clusters inline",
            at,
            got=name,
        )
    return {
        "name": name,
        "gpu": preset_source("gpus", gpu, at, source).value,
        "nodes": nodes,
        "gpus_per_node": per_node,
        "nic": preset_source("nics", _NIC.get(gpu, "cx7")).value,
    }
