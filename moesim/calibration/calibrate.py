"""From a machine to fits of the cost model: run plans on it, fit, and refuse what is noise.

Axes: X all measured cells of some phases, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.calibration.design import Settings, deployments, read_settings, write_spec
from moesim.calibration.experts import ExpertFit, fit_experts
from moesim.calibration.fitting import Fit
from moesim.calibration.jitter import fit_jitter, quantities
from moesim.calibration.machine import Machine
from moesim.calibration.observed import COLLECTIVES, Observed
from moesim.calibration.quantity import Quantity
from moesim.calibration.router import RouterFit, fit_router
from moesim.calibration.transfers import TransferFit, fit_transfers
from moesim.deployment.deployment import Deployment
from moesim.errors import CalibrationError, SpecError
from moesim.live.launch import launch
from moesim.live.repeats import join_repeats
from moesim.spec.dtypes import Dtype
from moesim.spec.profile import Jitter, Phase
from traces.base.parts import scratch_folder
from traces.timeline import read_timeline

FloatArray = NDArray[np.float64]

_FOLDS = 5

_PHASES = {"experts": ("experts",), "transfers": COLLECTIVES}
_NOISE = {"experts": 0.05, "transfers": 0.2}
"""Standard error of the measured medians, in the median cell, beyond which a fit would be one of noise."""
_UNSURE = {"experts": 0.3, "transfers": 1.0}
"""Relative half width of a rate's confidence interval beyond which it is not determined. Most of a transfer
are fixed costs, so that the link's rate need only be told from one without a limit."""


@dataclass(frozen=True)
class Quality:
    """How far predictions are from what was measured: relative, median and 95th percentile of all cells.

    Attributes:
        fitted, left_out: of loads that the fit saw, and that it did not see.
        noise: standard error of the measured medians, in the median cell.
    """

    fitted: tuple[float, float]
    left_out: tuple[float, float]
    noise: float

    @classmethod
    def of(cls, found: Fit, measured_X: FloatArray, noise: float) -> Quality:
        """Of a fit to ``measured_X``."""
        fitted_X, left_out_X = (
            np.abs(predicted_X / measured_X - 1.0) for predicted_X in (found.predicted_R, found.left_out_R)
        )
        return cls(_spread(fitted_X), _spread(left_out_X), noise)


@dataclass(frozen=True)
class Calibration:
    """The fits, and what they rest on.

    Attributes:
        plans: what ran.
        transfers: None for a rank on its own.
        jitter: of all phases that were measured.
        quality: of the fits, by name.
        doubts: why this may be a fit of noise; empty where it is none.
    """

    machine: Machine
    plans: Sequence[Observed]
    experts: ExpertFit
    transfers: TransferFit | None
    router: RouterFit
    jitter: dict[Phase, Jitter]
    quality: dict[str, Quality]
    doubts: Sequence[str]

    def quantities(self, dtype: Dtype) -> list[Quantity]:
        """Peaks, then what the fits found."""
        return [
            *self.machine.quantities(dtype),
            *self.experts.quantities(dtype),
            *self.router.quantities(),
            *(self.transfers.quantities() if self.transfers is not None else ()),
            *quantities(self.jitter),
        ]


class Calibrating:
    """A calibration that measures in stretches.

    On a machine whose speed drifts, stretches before and after something else bracket it.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Write what is to be run into ``folder``.

        Raises:
            MoesimError: a setting is at fault.
        """
        self._settings, self._folder = settings, folder
        self._deployments = write_spec(settings, folder)
        self._measured: list[Path] = []

    def measure(self) -> None:
        """Measure for ``settings.seconds``.

        Raises:
            MoesimError: the ranks failed.
        """
        measured = self._folder / f"measured-{len(self._measured)}"
        given: list[str | Path] = [self._folder / "spec.json", "-o", measured]
        launch(self._settings.ranks, "executor.measuring.microbench", given, measured)
        self._measured.append(measured)

    def fit(self) -> Calibration:
        """Fit all stretches together."""
        return fit_machine(self._settings, self._deployments, *self._measured)


def calibrate(settings: Settings) -> Calibration:
    """Measure this machine and fit.

    Raises:
        MoesimError: a setting is at fault, or the ranks failed.
        CalibrationError: the machine was too noisy.
    """
    with scratch_folder() as folder:
        calibrating = Calibrating(settings, folder)
        calibrating.measure()
        return _sure(calibrating.fit())


def fit_measured(folders: Sequence[Path]) -> tuple[Settings, Calibration]:
    """What was asked for, and a fit of what ``executor.measuring.microbench`` wrote, here or elsewhere.

    Args:
        folders: of one or several runs of the same specification on the same machine.

    Raises:
        MoesimError: a folder lacks a file, or they differ.
        CalibrationError: the machine was too noisy.
    """
    settings = read_settings(folders[0] / "spec.json")
    for folder in folders[1:]:
        if read_settings(folder / "spec.json") != settings:
            raise SpecError(f"must be of the same settings as {folders[0]}", file=folder / "spec.json")
    return settings, _sure(fit_machine(settings, deployments(settings), *folders))


def _sure(done: Calibration) -> Calibration:
    if done.doubts:
        raise CalibrationError(
            f"{done.doubts[0]}; end what else runs on the machine, or measure longer (--seconds)"
        )
    return done


def fit_machine(settings: Settings, deployments: Sequence[Deployment], *measured: Path) -> Calibration:
    """Fit what the microbenchmarks wrote into the folders ``measured``; the first tells the peaks."""
    machine = Machine.read(measured[0] / "machine.json")
    plans = []
    for each in deployments:
        stretches = [read_timeline(folder / f"{each.scenario.name}.parquet") for folder in measured]
        plans.append(Observed.of(each, join_repeats(stretches)))
    fitted = ("experts", "transfers") if settings.ranks > 1 else ("experts",)
    noise = {what: _error(plans, _PHASES[what]) for what in fitted}
    doubts = [
        f"the machine is too noisy: what {what} take is uncertain by {typical:.0%} after all repeats, "
        f"and may be by {_NOISE[what]:.0%}"
        for what, typical in noise.items()
        if typical > _NOISE[what]
    ]
    on_paper = machine.preset() is not None
    fold_P = np.arange(len(plans)) % _FOLDS
    experts = fit_experts(
        plans,
        machine.gpu(settings.dtype),
        settings.dtype,
        fold_P,
        backend=settings.backend,
        measured=not on_paper,
    )
    doubts += _unsure("experts", experts.quantities(settings.dtype)[:2])
    quality = {"experts": Quality.of(experts.fit, experts.measured_X, noise["experts"])}
    transfers = None
    if settings.ranks > 1:
        transfers = fit_transfers(plans, experts.gpu, fold_P, measured=not on_paper)
        doubts += _unsure("transfers", transfers.quantities()[:1])
        quality["transfers"] = Quality.of(transfers.fit, transfers.measured_X, noise["transfers"])
    router = fit_router(plans, experts, machine.launch_s, fold_P)
    quality["router"] = Quality.of(router.fit, router.measured_X, _error(plans, ("router",)))
    return Calibration(machine, plans, experts, transfers, router, fit_jitter(plans), quality, doubts)


def _spread(error_X: FloatArray) -> tuple[float, float]:
    return float(np.median(error_X)), float(np.percentile(error_X, 95))


def _error(plans: Sequence[Observed], phases: Sequence[str]) -> float:
    """Standard error of the medians, in the median cell of these phases."""
    return float(np.median(np.concatenate([plan.error[phase].ravel() for plan in plans for phase in phases])))


def _unsure(what: str, rates: Sequence[Quantity]) -> list[str]:
    """A line for each rate that the measurements do not determine."""
    return [
        f"the measurements do not determine a rate, {rate.name}: its 95 % confidence interval is "
        + (f"± {rate.interval:.0%}" if np.isfinite(rate.interval) else "without an end")
        for rate in rates
        if rate.interval is not None and rate.interval > _UNSURE[what]
    ]
