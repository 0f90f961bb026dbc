"""The links' share of a profile: how fast rows travel, and what every dispatch and combine costs besides.

Axes: C cells (layers of steps), G ranks, X all measured collectives on all ranks, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.calibration.fitting import Fit, Problem, fit
from moesim.calibration.observed import COLLECTIVES, Observed
from moesim.calibration.quantity import Quantity, fitted
from moesim.hardware.network import Fabric, Ports
from moesim.hardware.transfer import Transfer
from moesim.spec.cluster import Gpu
from moesim.spec.links import Links

FloatArray = NDArray[np.float64]

_NS, _MS = 1e-9, 1e-3


@dataclass(frozen=True)
class _Collective:
    """One dispatch or combine: what it moved, and when each rank entered, from the last one's entry."""

    mode: str
    phase: str
    transfer: Transfer
    entered_G: FloatArray
    served_bytes_G: FloatArray


@dataclass(frozen=True)
class TransferFit:
    """The fit to the collectives of all modes.

    Attributes:
        fit: of nanoseconds for each byte on a port, and for each byte of served rows that is put in order;
            for each mode, of milliseconds of each collective and of each exchange of counts.
        bandwidth: of a rank's port, bytes per second.
        links: by mode.
    """

    fit: Fit
    measured_X: FloatArray
    bandwidth: float
    links: dict[str, Links]

    def quantities(self) -> list[Quantity]:
        """The parameters; rows are read and written to put them in order."""
        named: list[tuple[str, float, str]] = [("transfers: link, one way", self.bandwidth, "B/s")]
        named.append(("transfers: rows in order", 2.0 / (float(self.fit.parameters_P[1]) * _NS), "B/s"))
        for mode, links in self.links.items():
            named += [(f"{mode}: fixed", links.fixed, "s"), (f"{mode}: counts", links.counts, "s")]
        return fitted(named, self.fit)


def fit_transfers(
    plans: Sequence[Observed], gpu: Gpu, fold_P: NDArray[np.int64], *, measured: bool
) -> TransferFit:
    """Fit ports and fixed costs to what dispatch and combine took.

    Args:
        plans: what ran, of one rank or more.
        gpu: with its rate of memory.
        fold_P: for each plan; those of one fold are left out together.
        measured: whether the link's rate is measured here, rather than bounded by a data sheet.
    """
    modes = list(dict.fromkeys(plan.deployment.scenario.dispatch.mode for plan in plans))
    collectives = [each for plan in plans for phase in COLLECTIVES for each in _collectives(plan, phase)]
    seconds_X = np.concatenate([plan.seconds[phase].ravel() for plan in plans for phase in COLLECTIVES])
    fold_X = np.concatenate(
        [
            np.full(plan.seconds[phase].size, fold)
            for plan, fold in zip(plans, fold_P.tolist(), strict=True)
            for phase in COLLECTIVES
        ]
    )
    # Beside the ports everything is linear: what each parameter costs each collective on each rank.
    linear_XP = np.concatenate([_linear(each, modes) for each in collectives])

    # Slopes by the other parameters need no new ends.
    @lru_cache(maxsize=16)
    def ends_X(port: float) -> FloatArray:
        network = Ports(_fabric(1.0 / (port * _NS), len(collectives[0].entered_G)))
        return np.concatenate([_ends_G(each, network) for each in collectives])

    def predict(parameters_P: FloatArray) -> FloatArray:
        ended_X: FloatArray = ends_X(float(parameters_P[0])) + linear_XP @ parameters_P[1:]
        return ended_X

    # A row that is put in order is read and written once.
    least = 2.0 / gpu.memory_bandwidth / _NS
    fastest = 1e-3 if measured else 1.0 / gpu.nvlink.bandwidth / _NS
    fixed = np.ones(2 * len(modes))
    problem = Problem(
        predict,
        seconds_X,
        np.concatenate([[max(1.0, 2 * fastest), 2 * least], 0.1 * fixed]),
        np.concatenate([[fastest, least], 0.0 * fixed]),
        np.concatenate([[100.0, 100 * least], 10.0 * fixed]),
        loss="soft_l1",
    )
    found_fit = fit(problem, fold_X)
    port, order, *fixed_ms = found_fit.parameters_P.tolist()
    bandwidth = 1.0 / (port * _NS)
    links = {
        mode: Links(
            nvlink=1.0 if measured else bandwidth / gpu.nvlink.bandwidth,
            nic=1.0,
            fixed=each * _MS,
            counts=counts * _MS,
            arrange=min(1.0, least / order),
        )
        for mode, each, counts in zip(modes, fixed_ms[::2], fixed_ms[1::2], strict=True)
    }
    return TransferFit(found_fit, seconds_X, bandwidth, links)


def _collectives(plan: Observed, phase: str) -> list[_Collective]:
    mode, copy = plan.deployment.scenario.dispatch.mode, plan.deployment.pricing.copy_bytes()
    row_bytes = copy.dispatch if phase == "dispatch" else copy.combine
    cells = zip(plan.transfers[phase], plan.entered[phase], plan.work.served_LG, strict=True)
    return [
        _Collective(mode, phase, transfer, entered_G, served_G * row_bytes)
        for transfer, entered_G, served_G in cells
    ]


def _ends_G(collective: _Collective, network: Ports) -> FloatArray:
    """Seconds from the last rank's entry until a rank's ports, and those that send to it, are done."""
    transfer = collective.transfer
    return network.collective(collective.entered_G, transfer.first_GG, transfer.second_GG)


def _linear(collective: _Collective, modes: Sequence[str]) -> FloatArray:
    """[G, P - 1]: what every parameter but the ports' costs this collective on each rank."""
    seconds_GP = np.zeros((len(collective.entered_G), 1 + 2 * len(modes)))
    seconds_GP[:, 0] = collective.served_bytes_G * _NS
    fixed = 1 + 2 * modes.index(collective.mode)
    seconds_GP[:, fixed] = _MS
    if collective.phase == "dispatch":
        seconds_GP[:, fixed + 1] = _MS
    return seconds_GP


def _fabric(bandwidth: float, ranks: int) -> Fabric:
    """One node, whose ports alone limit."""
    return Fabric(ranks, bandwidth, bandwidth, 0.0, 0.0)
