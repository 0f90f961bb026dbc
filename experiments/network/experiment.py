"""DeepEP's dispatch and combine on H800: counted bytes over fitted shares of two links."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.comparison import Comparison, Parameter, Row
from experiments.network.cases import GPUS_PER_NODE, SOURCE, Case, low_latency_cases, normal_cases
from moesim.calibration.fitting import Fit, Problem, fit
from moesim.hardware.network import Fabric, Ports
from moesim.spec.cluster import Cluster, load_cluster
from moesim.spec.profile import Links
from moesim.spec.yaml_source import Source
from moesim.units import format_rate, format_seconds

FloatArray = NDArray[np.float64]

_FITTED_GPUS = 64
"""Largest group that the fit sees; larger ones are left to check it."""


def network() -> Comparison:
    """Both tables: three parameters for each kind of kernels."""
    cluster = load_cluster(f"h800-1x{GPUS_PER_NODE}", Source(None, None, {}))
    normal = normal_cases()
    fitted_normal = fit(
        Problem(
            lambda parameters_P: np.array(
                [_cell(case, _normal(case, parameters_P), cluster) for case in normal]
            ),
            np.array([case.measured for case in normal]),
            start_P=np.array([0.7, 0.65, 0.9]),
            lower_P=np.full(3, 0.1),
            upper_P=np.ones(3),
        )
    )
    every = low_latency_cases()
    low_latency = [case for case in every if case.gpus <= _FITTED_GPUS]
    fitted_low = fit(
        Problem(
            lambda parameters_P: np.array([_cell(case, _low(parameters_P), cluster) for case in low_latency]),
            np.array([case.measured for case in low_latency]),
            start_P=np.array([0.8, 0.9, 3e-5]),
            lower_P=np.array([0.1, 0.1, 0.0]),
            upper_P=np.array([1.0, 1.0, 1e-4]),
        )
    )
    checks = tuple(
        Row(_name(case), "µs", case.measured, _cell(case, _low(fitted_low.parameters_P), cluster))
        for case in every
        if case.gpus > _FITTED_GPUS
    )
    return Comparison(
        "network",
        SOURCE,
        rows=_rows(normal, fitted_normal) + _rows(low_latency, fitted_low),
        checks=checks,
        parameters=_parameters(fitted_normal.parameters_P, fitted_low.parameters_P, cluster),
    )


def _normal(case: Case, parameters_P: FloatArray) -> Links:
    """Kernels inside one node, and kernels that relay between nodes: another share of NVLink each."""
    direct, relaying, nic = parameters_P
    return Links(nvlink=direct if case.gpus == GPUS_PER_NODE else relaying, nic=nic)


def _low(parameters_P: FloatArray) -> Links:
    nvlink, nic, fixed = parameters_P
    return Links(nvlink=nvlink, nic=nic, fixed=fixed)


def _cell(case: Case, links: Links, cluster: Cluster) -> float:
    """What the table would show: GB/s for normal kernels, microseconds for low-latency ones."""
    seconds = seconds_G(case, links, cluster).mean()  # the tables do not say of which rank
    return float(case.logical_bytes / seconds / 1e9 if case.mode == "per_node" else seconds * 1e6)


def seconds_G(case: Case, links: Links, cluster: Cluster) -> FloatArray:
    """When each GPU has its bytes, if all start together: the simulator's network model ``ports``."""
    nvlink, nic = cluster.gpu.nvlink, cluster.nic
    fabric = Fabric(
        GPUS_PER_NODE,
        nvlink.bandwidth * links.nvlink,
        nic.bandwidth * links.nic,
        nvlink.latency,
        nic.latency,
    )
    transfer = case.transfer
    end_G = Ports(fabric).collective(np.zeros(case.gpus), transfer.first_GG, transfer.second_GG)
    return end_G + links.fixed


def _rows(cases: Sequence[Case], fitted: Fit) -> tuple[Row, ...]:
    return tuple(
        Row(
            _name(case),
            "GB/s" if case.mode == "per_node" else "µs",
            case.measured,
            float(predicted),
            float(left_out),
        )
        for case, predicted, left_out in zip(cases, fitted.predicted_R, fitted.left_out_R, strict=True)
    )


def _name(case: Case) -> str:
    kind = "normal" if case.mode == "per_node" else "low latency"
    return f"{kind} {case.phase}, EP{case.gpus}"


def _parameters(normal_P: FloatArray, low_P: FloatArray, cluster: Cluster) -> tuple[Parameter, ...]:
    nvlink, nic = cluster.gpu.nvlink.bandwidth, cluster.nic.bandwidth
    below_nvlink, below_nic = f"of {format_rate(nvlink)} NVLink", f"of {format_rate(nic)} NIC"
    return (
        Parameter("normal, inside a node", format_rate(normal_P[0] * nvlink), below_nvlink),
        Parameter("normal, relaying, NVLink", format_rate(normal_P[1] * nvlink), below_nvlink),
        Parameter("normal, relaying, NIC", format_rate(normal_P[2] * nic), below_nic),
        Parameter("low latency, NVLink", format_rate(low_P[0] * nvlink), below_nvlink),
        Parameter("low latency, NIC", format_rate(low_P[1] * nic), below_nic),
        Parameter("low latency, fixed", format_seconds(low_P[2]), "of each dispatch and combine"),
    )
