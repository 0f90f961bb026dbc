"""The experts' share of a profile: how close their GEMMs come to the two roofs, and with which tiles.

Axes: C cells (layers of steps), S slots, G ranks, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.calibration.fitting import SOFT, Fit, Problem, fit
from moesim.calibration.observed import Observed
from moesim.calibration.quantity import Quantity, fitted
from moesim.hardware.kernels import Kernels
from moesim.spec.cluster import Gpu
from moesim.spec.dtypes import Dtype
from moesim.spec.profile import DATA_SHEET, Profile, Roof, Tile

FloatArray = NDArray[np.float64]

_HEIGHTS = (8, 16, 32, 64, 128)

_EXACT = 1e-12
"""Mean squared relative error of a fit that no other can better."""

# How far above the rates that were measured alone a fitted one may lie: caches serve some of what streams.
_ROOM = 4.0


@dataclass(frozen=True)
class Shape:
    """What a family of cost models leaves open.

    Attributes:
        loop: whether slots are launched one by one, which adds arithmetic to memory traffic.
        height: of the tiles that many rows use; few rows use tiles of one row. None: only the latter.
    """

    loop: bool
    height: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        few = () if self.height is None else ("few rows", "start")
        return ("arithmetic", "memory", *few, *(() if self.loop else ("overlap", "fixed")))

    def bounds(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Where each parameter begins, its least and its largest value."""
        known = {
            "arithmetic": (0.15, 1e-3, 1.0),
            "memory": (0.2, 1e-3, 1.0),
            "few rows": (0.4, 1e-2, 1.0),
            "start": (4.0, 0.0, 512.0),
            "overlap": (0.5, 0.0, 1.0),
            "fixed": (1e-5, 0.0, 1e-2),
        }
        start, lower, upper = zip(*(known[name] for name in self.names), strict=True)
        return np.array(start), np.array(lower), np.array(upper)

    def profile(self, parameters_P: FloatArray) -> Profile:
        """A profile with these parameters, whose rates are shares of the roomy GPU's."""
        value = dict(zip(self.names, map(float, parameters_P), strict=True))
        roof = Roof(
            compute=value["arithmetic"],
            memory=value["memory"],
            overlap=value.get("overlap", 0.0),
        )
        tiles: Sequence[Tile] = [Tile(rows=1, efficiency=1.0)]
        if self.height is not None:
            tiles = [
                Tile(rows=1, efficiency=value["few rows"]),
                Tile(rows=self.height, efficiency=1.0, start=value["start"]),
            ]
        return DATA_SHEET.model_copy(
            update={
                "grouped_gemm": roof,
                "tiles": tuple(tiles),
                "loop": self.loop,
                "fused_activation": False,
                "launch": value.get("fixed", 0.0),
                "kernels": {"experts": 1},
            }
        )


@dataclass(frozen=True)
class ExpertFit:
    """The family that explains the cells best.

    Attributes:
        fit: of its parameters to all cells with rows; ``measured_X`` is what they took, X.
        gpu: the measured one, with rates no lower than what the experts reached.
        profile: with ``grouped_gemm``, ``tiles``, ``loop`` and the fixed seconds of the experts.
    """

    shape: Shape
    fit: Fit
    measured_X: FloatArray
    gpu: Gpu
    profile: Profile

    def quantities(self, dtype: Dtype) -> list[Quantity]:
        """The parameters, rates in full."""
        roof = self.profile.grouped_gemm
        full = {
            "arithmetic": (roof.compute * self.gpu.flops[dtype], "FLOP/s"),
            "memory": (roof.memory * self.gpu.memory_bandwidth, "B/s"),
            "fixed": (self.profile.launch, "s"),
        }
        parameters = zip(self.shape.names, self.fit.parameters_P.tolist(), strict=True)
        named = [(f"experts: {name}", *full.get(name, (parameter, ""))) for name, parameter in parameters]
        lines = fitted(named, self.fit)
        if self.shape.height is not None:
            lines.append(Quantity("experts: height of a tile", self.shape.height))
        return lines


def fit_experts(
    plans: Sequence[Observed],
    gpu: Gpu,
    dtype: Dtype,
    fold_P: NDArray[np.int64],
    *,
    backend: str,
    measured: bool,
) -> ExpertFit:
    """Fit every family that suits the back end, and take the best.

    Args:
        plans: what ran.
        fold_P: for each plan; those of one fold are left out together.
        gpu: with the rates that it promises.
        dtype: of the weights.
        backend: of the executor.
        measured: whether the promises were measured here, rather than read from a data sheet.

    Raises:
        SpecError: the GPU's data sheet has no figure for ``dtype``.
    """
    model, slot_gpu_S = plans[0].deployment.scenario.model, plans[0].deployment.placement.slot_gpu_S
    tokens_CS = np.concatenate([plan.work.tokens_LS for plan in plans])
    served_CG = np.concatenate([plan.work.served_LG for plan in plans])
    seconds_CG = np.concatenate([plan.seconds["experts"] for plan in plans])
    fold_C = np.repeat(fold_P, [len(plan.work.tokens_LS) for plan in plans])
    # A rank without rows computes nothing: its time is that of asking.
    busy_CG = served_CG > 0
    room = _ROOM if measured else 1.0
    roomy = faster(gpu, dtype, gpu.peak_flops(dtype) * room, gpu.memory_bandwidth * room)

    def problem(shape: Shape) -> Problem:
        def predict(parameters_P: FloatArray) -> FloatArray:
            kernels = Kernels(model, roomy, shape.profile(parameters_P))
            found_CG = kernels.experts(tokens_CS, slot_gpu_S, seconds_CG.shape[1])
            return (found_CG + kernels.launch_s("experts"))[busy_CG]

        return Problem(predict, seconds_CG[busy_CG], *shape.bounds(), loss="soft_l1")

    shapes = [
        Shape(loop, height)
        for loop in ((True,) if backend == "loop" else (True, False))
        for height in (None, *_HEIGHTS)
    ]
    best = min(shapes, key=lambda shape: _surprise(problem(shape)))
    found = fit(problem(best), np.broadcast_to(fold_C[:, None], busy_CG.shape)[busy_CG])
    raw = best.profile(found.parameters_P)
    flops = raw.grouped_gemm.compute * roomy.flops[dtype]
    bandwidth = raw.grouped_gemm.memory * roomy.memory_bandwidth
    reached = faster(gpu, dtype, max(flops, gpu.flops[dtype]), max(bandwidth, gpu.memory_bandwidth))
    roof = raw.grouped_gemm.model_copy(
        update={"compute": flops / reached.flops[dtype], "memory": bandwidth / reached.memory_bandwidth}
    )
    return ExpertFit(best, found, seconds_CG[busy_CG], reached, raw.model_copy(update={"grouped_gemm": roof}))


def faster(gpu: Gpu, dtype: Dtype, flops: float, bandwidth: float) -> Gpu:
    """The same with other rates."""
    return gpu.model_copy(update={"flops": {**gpu.flops, dtype: flops}, "memory_bandwidth": bandwidth})


def _surprise(problem: Problem) -> float:
    """The Bayesian information criterion (Schwarz 1978): a parameter must earn its place."""
    parameters_P, _ = problem.solve()
    wrong_X = problem.model(parameters_P) / problem.measured_R - 1.0
    rows = len(wrong_X)
    # As the loss counts them: few disturbed cells must not decide.
    cost = float((2 * SOFT**2 * (np.sqrt(1 + (wrong_X / SOFT) ** 2) - 1)).mean())
    return rows * math.log(max(cost, _EXACT)) + len(parameters_P) * math.log(rows)
