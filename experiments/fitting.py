"""Few parameters, fitted to relative errors inside physical bounds, with every row left out once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

FloatArray = NDArray[np.float64]

# Predicted cells, one for each row, for parameters P.
Model = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class Fit:
    """Parameters of the fit to all rows, and for each row the prediction of a fit to the others."""

    parameters_P: FloatArray
    predicted_R: FloatArray
    left_out_R: FloatArray


def fit(
    model: Model,
    measured_R: FloatArray,
    start_P: FloatArray,
    lower_P: FloatArray,
    upper_P: FloatArray,
) -> Fit:
    """Least squares of the relative errors of ``model(parameters)`` over rows R, within bounds."""

    def solve(kept_R: NDArray[np.bool_], from_P: FloatArray) -> FloatArray:
        def errors(parameters_P: FloatArray) -> FloatArray:
            wrong_R: FloatArray = model(parameters_P)[kept_R] / measured_R[kept_R] - 1.0
            return wrong_R

        # Maxima over links and roofs have kinks: steps wide enough to see across them.
        found = least_squares(
            errors, from_P, bounds=(lower_P, upper_P), x_scale=upper_P - lower_P, diff_step=1e-4
        )
        parameters_P: FloatArray = found.x
        return parameters_P

    rows = len(measured_R)
    parameters_P = solve(np.ones(rows, bool), start_P)
    # A solver may not start on a bound.
    margin_P = 1e-6 * (upper_P - lower_P)
    inside_P = np.clip(parameters_P, lower_P + margin_P, upper_P - margin_P)
    left_out_R = np.array([model(solve(np.arange(rows) != row, inside_P))[row] for row in range(rows)])
    return Fit(parameters_P, model(parameters_P), left_out_R)
