"""The router's share of a profile: launches, and what it does row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.calibration.experts import ExpertFit
from moesim.calibration.fitting import Fit, Problem, fit
from moesim.calibration.observed import Observed
from moesim.calibration.quantity import Quantity, fitted
from moesim.hardware.kernels import Kernels
from moesim.spec.profile import Roof

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class RouterFit:
    """The fit to the routers of all cells; its parameters are launches and the share of the peak."""

    fit: Fit
    measured_X: FloatArray
    launches: int
    roof: Roof

    def quantities(self) -> list[Quantity]:
        """Both parameters."""
        named = [
            ("router: launches", self.launches, ""),
            ("router: share of the peak", self.roof.compute, ""),
        ]
        return fitted(named, self.fit)


def fit_router(
    plans: Sequence[Observed], experts: ExpertFit, launch_s: float, fold_P: NDArray[np.int64]
) -> RouterFit:
    """Fit launches and the arithmetic rate of the gate, which stands for all that grows with the tokens.

    Args:
        plans: what ran.
        experts: of the same plans; memory is as fast for the router.
        launch_s: of one launch.
        fold_P: for each plan; those of one fold are left out together.
    """
    model = plans[0].deployment.scenario.model
    tokens_X = np.concatenate([plan.tokens_CG.ravel() for plan in plans])
    measured_X = np.concatenate([plan.seconds["router"].ravel() for plan in plans])
    fold_X = np.repeat(fold_P, [plan.tokens_CG.size for plan in plans])
    memory = experts.profile.grouped_gemm

    def roof(share: float) -> Roof:
        return memory.model_copy(update={"compute": share})

    def predict(parameters_P: FloatArray) -> FloatArray:
        launches, share = parameters_P.tolist()
        profile = experts.profile.model_copy(update={"router": roof(share)})
        kernels = Kernels(model, experts.gpu, profile)
        return kernels.router(tokens_X) + float(launches * launch_s)

    least, most = np.array([0.0, 1e-4]), np.array([1e4, 1.0])
    start = np.array([float(measured_X.min()) / launch_s, 0.1])
    problem = Problem(predict, measured_X, start, least, most, loss="soft_l1")
    found = fit(problem, fold_X)
    return RouterFit(found, measured_X, round(found.parameters_P[0]), roof(float(found.parameters_P[1])))
