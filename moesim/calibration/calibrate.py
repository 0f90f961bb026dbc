"""From a machine to its profile: write plans, run them, fit, and say how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.calibration.design import LOADS, OTHER_LOADS, calibrated_model, deployment
from moesim.calibration.experts import ExpertFit, fit_experts
from moesim.calibration.machine import Machine
from moesim.calibration.observed import Observed
from moesim.calibration.transfers import TransferFit, fit_transfers
from moesim.errors import CalibrationError
from moesim.execution.plan import write_plan
from moesim.hardware.kernels import Kernels
from moesim.output import to_json
from moesim.simulation.deployment import Deployment
from moesim.spec.base import validate
from moesim.spec.cluster import Cluster
from moesim.spec.model import Dtype
from traces.files import write_text
from traces.memory import physical_memory
from traces.timeline import read_timeline

FloatArray = NDArray[np.float64]

_FOLDS = 5
_NOISE = {"experts": 0.05, "transfers": 0.2}
"""Standard error of the medians, in the median cell, beyond which a fit would be one of noise."""
_UNSURE = 0.3
"""Relative half width of a confidence interval beyond which a rate is not determined."""


@dataclass(frozen=True)
class Settings:
    """What to calibrate.

    Attributes:
        model: a preset or config.json whose experts' shape is measured; by default that of ``cpu-ep2``.
        seconds: how long the plans are repeated.
        threads: of each rank, on CPU.
    """

    device: str = "cpu"
    ranks: int = 2
    backend: str = "loop"
    dtype: Dtype = "fp32"
    model: str | None = None
    seconds: float = 60.0
    threads: int = 1


@dataclass(frozen=True)
class Calibration:
    """The fits, and what they rest on."""

    machine: Machine
    plans: list[Observed]
    experts: ExpertFit
    transfers: TransferFit | None
    router_launches: int


def write_spec(settings: Settings, folder: Path) -> list[Deployment]:
    """Plans and ``spec.json`` for ``executor.microbench``; what the plans were written from.

    Raises:
        MoesimError: no such model, or its experts do not fit into memory.
    """
    cluster = _stand_in(settings)
    model = calibrated_model(settings.model, settings.dtype, settings.ranks, cluster.gpu.memory)
    loads = (*LOADS, *OTHER_LOADS) if settings.ranks > 1 else LOADS
    deployments = [deployment(load, model, cluster) for load in loads]
    for each in deployments:
        write_plan(each, folder / each.scenario.name)
    spec = {
        "format": "moesim.microbench/1",
        "plans": [each.scenario.name for each in deployments],
        "device": settings.device,
        "backend": settings.backend,
        "threads": settings.threads,
        "seconds": settings.seconds,
    }
    write_text(folder / "spec.json", to_json(spec))
    return deployments


def _stand_in(settings: Settings) -> Cluster:
    """A cluster for plans, of which only the number of ranks counts and, on CPU, the memory."""
    rate = 1e9
    memory = physical_memory() // settings.ranks if settings.device == "cpu" else 40 << 30
    gpu = {
        "name": settings.device,
        "memory": memory,
        "memory_bandwidth": rate,
        "flops": {settings.dtype: rate},
        "sms": 1,
        "nvlink": {"bandwidth": rate},
    }
    return validate(Cluster, {"gpu": gpu, "gpus_per_node": settings.ranks, "nic": {"bandwidth": rate}})


def calibrate(settings: Settings, deployments: Sequence[Deployment], measured: Path) -> Calibration:
    """Fit what ``executor.microbench`` measured into the folder ``measured``.

    Raises:
        CalibrationError: the machine was too noisy, or the rates are not determined.
    """
    machine = Machine.read(measured / "machine.json")
    plans = [
        Observed.of(each, read_timeline(measured / f"{each.scenario.name}.parquet")) for each in deployments
    ]
    _check_noise(plans, settings.ranks)
    gpu, on_paper = machine.gpu(settings.dtype), machine.preset() is not None
    fold_P = np.arange(len(plans)) % _FOLDS
    experts = fit_experts(plans, gpu, settings.dtype, fold_P, backend=settings.backend, measured=not on_paper)
    _check_rates("the experts'", experts.shape.names[:2], experts.fit.parameters_P, experts.fit.interval_P)
    transfers = None
    if settings.ranks > 1:
        transfers = fit_transfers(plans, experts.gpu, fold_P, measured=not on_paper)
        _check_rates("the links'", transfers.names[:1], transfers.fit.parameters_P, transfers.fit.interval_P)
    return Calibration(machine, plans, experts, transfers, _router_launches(plans, experts, machine.launch_s))


def _router_launches(plans: Sequence[Observed], experts: ExpertFit, launch_s: float) -> int:
    """The launches that best explain, beside the gate's GEMM, what routers take."""
    profile = experts.profile.model_copy(update={"gemm": experts.profile.grouped_gemm})
    kernels = Kernels(plans[0].deployment.scenario.model, experts.gpu, profile)
    measured_X = np.concatenate([plan.seconds["router"].ravel() for plan in plans])
    gate_X = np.concatenate([kernels.router(plan.tokens_CG).ravel() for plan in plans])
    # The least squares of relative errors have a closed form in one parameter.
    each_X = launch_s / measured_X
    return max(0, round(float((each_X * (1 - gate_X / measured_X)).sum() / (each_X**2).sum())))


def _check_noise(plans: Sequence[Observed], ranks: int) -> None:
    """Refuse repeats that differ so much that their medians say little."""
    error_s = {"experts": [plan.error["experts"].ravel() for plan in plans]}
    if ranks > 1:
        error_s["transfers"] = [
            plan.error[phase].ravel() for plan in plans for phase in ("dispatch", "combine")
        ]
    for what, errors in error_s.items():
        typical = float(np.median(np.concatenate(errors)))
        if typical > _NOISE[what]:
            raise CalibrationError(
                f"the machine is too noisy: medians of the time of {what} are uncertain by {typical:.0%}, and "
                f"may be by {_NOISE[what]:.0%}; end what else runs on it, or measure longer (--seconds)",
                got=f"{len(plans)} loads",
            )


def _check_rates(whose: str, names: Sequence[str], parameters_P: FloatArray, interval_P: FloatArray) -> None:
    for name, value, interval in zip(names, parameters_P, interval_P, strict=False):
        if not interval <= _UNSURE * value:
            raise CalibrationError(
                f"the measurements do not determine {whose} {name}: its 95 % confidence interval is "
                f"± {interval / value:.0%}; measure longer (--seconds) on a machine with nothing else to do"
            )
