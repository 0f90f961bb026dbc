"""What is fitted to which rows, and seconds of a row by the simulator's own costs.

P parameters, C cases, G GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from experiments.network.cases import GPUS_PER_NODE, Case
from moesim.calibration.fitting import Fit, Problem, fit
from moesim.hardware.network import Ports
from moesim.hardware.networks import reached
from moesim.hardware.transfer import busiest_s
from moesim.spec.cluster import Cluster, load_cluster
from moesim.spec.links import Links
from moesim.spec.profile import Profile, load_profile
from moesim.spec.yaml_source import Source

FloatArray = NDArray[np.float64]

_NOWHERE = Source(None, None, {})


@dataclass(frozen=True)
class Figure:
    """A field of ``Links`` that is fitted: where to begin, the bounds of physics, and their unit."""

    start: float
    lower: float
    upper: float
    unit: float = 1.0


_FIGURES = {
    "nvlink": Figure(0.7, 0.1, 1.0),
    "nic": Figure(0.9, 0.1, 1.0),
    "rate": Figure(11.0, 1.0, 100.0, 1e9),
    "spread": Figure(5.0, 0.0, 20.0),
    "fixed": Figure(30.0, 0.0, 200.0, 1e-6),
    "fixed_combine": Figure(40.0, 0.0, 200.0, 1e-6),
    "grows": Figure(5.0, 0.0, 100.0, 1e-6),
}


@dataclass(frozen=True)
class Fitted:
    """A fit of some fields of ``Links`` to some rows; the other fields are those of the profile.

    Attributes:
        kind: of the cases.
        names: of the fitted fields.
        links: with the fitted figures.
    """

    kind: str
    names: tuple[str, ...]
    cases: Sequence[Case]
    links: Links
    fit: Fit


def fit_links(
    kind: str,
    names: tuple[str, ...],
    cases: Sequence[Case],
    *,
    by_tokens: bool = False,
    **held: float | None,
) -> Fitted:
    """Least squares of the relative errors.

    Args:
        kind: of the cases.
        names: of the fields to fit; others are those of the built-in profile.
        cases: the rows.
        by_tokens: whether rows of one batch size are left out together, rather than each alone.
        held: fields that are other than in the profile.
    """
    base = profile_links(cases[0]).model_copy(update=held)
    figures = [_FIGURES[name] for name in names]

    def links_of(parameters_P: FloatArray) -> Links:
        found = {
            name: value * each.unit
            for name, value, each in zip(names, parameters_P.tolist(), figures, strict=True)
        }
        return base.model_copy(update=found)

    problem = Problem(
        lambda parameters_P: np.array([predicted(case, links_of(parameters_P)) for case in cases]),
        np.array([case.measured for case in cases]),
        start_P=np.array([each.start for each in figures]),
        lower_P=np.array([each.lower for each in figures]),
        upper_P=np.array([each.upper for each in figures]),
    )
    groups = np.array([case.tokens for case in cases]) if by_tokens else None
    found = fit(problem, groups)
    return Fitted(kind, names, cases, links_of(found.parameters_P), found)


def predicted(case: Case, links: Links) -> float:
    """What the table would show: microseconds, or GB/s of normal kernels on H800."""
    took_s = seconds(case, links)
    return case.logical_bytes / took_s / 1e9 if case.logical_bytes else took_s * 1e6


def seconds(case: Case, links: Links) -> float:
    """A collective that all enter together, as the mean over GPUs: the tables do not say of which rank."""
    if links.rate is not None:
        links = links.model_copy(update={"sms": case.sms})
    links = links.over(case.nodes)
    fabric = reached(cluster(case.machine), links, GPUS_PER_NODE)
    ends_s = _ends_s(case, fabric.nvlink_bandwidth, fabric.nic_bandwidth)
    last_s = np.mean([busiest_s(transfer, links, case.copy_bytes).mean() for transfer in case.transfers])
    return links.floor_s(case.phase) + ends_s + float(last_s)


@lru_cache(maxsize=1 << 16)
def _ends_s(case: Case, nvlink: float, nic: float) -> float:
    """Kept, because most parameters leave bandwidths as they are."""
    board = cluster(case.machine)
    links = Links(
        nvlink=min(1.0, nvlink / board.gpu.nvlink.bandwidth), nic=min(1.0, nic / board.nic.bandwidth)
    )
    network = Ports(reached(board, links, GPUS_PER_NODE))
    free_G = np.zeros(case.gpus)
    ends = [network.collective(free_G, each.first_GG, each.second_GG).mean() for each in case.transfers]
    return float(np.mean(ends))


@lru_cache
def cluster(machine: str) -> Cluster:
    """A node of it."""
    return load_cluster(f"{machine.lower()}-1x{GPUS_PER_NODE}", _NOWHERE)


@lru_cache
def profile(machine: str) -> Profile:
    """The built-in one of its GPUs."""
    return load_profile(None, _NOWHERE, (), machine)


def profile_links(case: Case) -> Links:
    """What the built-in profile says of these kernels, growing floors as they stand there."""
    found = profile(case.machine)
    if case.mode == "plain":
        assert found.plain is not None
        return found.plain
    return found.dispatch["per_gpu" if case.nodes == 1 and case.mode == "per_node" else case.mode]
