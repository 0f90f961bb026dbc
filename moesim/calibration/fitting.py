"""Few parameters, fitted to relative errors inside physical bounds, with rows left out in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t

FloatArray = NDArray[np.float64]

# Predicted cells, one for each row, for parameters P.
Model = Callable[[FloatArray], FloatArray]

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Fit:
    """Parameters of the fit to all rows, and for each row the prediction of a fit without its group.

    Attributes:
        parameters_P: the fit to all rows.
        interval_P: half of each parameter's 95 % confidence interval; 0 where a bound holds it, infinite
            where the rows do not tell it from the others.
        predicted_R, left_out_R: predictions of the fit to all rows, and of fits to other groups' rows.
    """

    parameters_P: FloatArray
    interval_P: FloatArray
    predicted_R: FloatArray
    left_out_R: FloatArray


def fit(
    model: Model,
    measured_R: FloatArray,
    start_P: FloatArray,
    lower_P: FloatArray,
    upper_P: FloatArray,
    *,
    group_R: NDArray[np.int64] | None = None,
    loss: str = "linear",
) -> Fit:
    """Least squares of the relative errors of ``model(parameters)`` over rows R, within bounds.

    Args:
        model: predictions for parameters.
        measured_R: what was measured, above zero.
        start_P, lower_P, upper_P: where to begin and how far to go.
        group_R: rows of one group are left out together; by default each row is its own.
        loss: of ``scipy.optimize.least_squares``; ``soft_l1`` lets errors beyond 10 % pull less.
    """

    def solve(kept_R: NDArray[np.bool_], from_P: FloatArray) -> tuple[FloatArray, FloatArray]:
        def errors(parameters_P: FloatArray) -> FloatArray:
            wrong_R: FloatArray = model(parameters_P)[kept_R] / measured_R[kept_R] - 1.0
            return wrong_R

        # Maxima over links and roofs have kinks: steps wide enough to see across them.
        found = least_squares(
            errors,
            from_P,
            bounds=(lower_P, upper_P),
            x_scale=upper_P - lower_P,
            diff_step=1e-4,
            loss=loss,
            f_scale=0.1,
        )
        return found.x, _interval(found.jac, found.fun, found.active_mask != 0)

    rows = len(measured_R)
    parameters_P, interval_P = solve(np.ones(rows, bool), start_P)
    # A solver may not start on a bound.
    margin_P = 1e-6 * (upper_P - lower_P)
    inside_P = np.clip(parameters_P, lower_P + margin_P, upper_P - margin_P)
    group_R = np.arange(rows) if group_R is None else group_R
    left_out_R = np.empty(rows)
    for group in np.unique(group_R):
        own_R = group_R == group
        left_out_R[own_R] = model(solve(~own_R, inside_P)[0])[own_R]
    return Fit(parameters_P, interval_P, model(parameters_P), left_out_R)


def _interval(slope_RP: FloatArray, wrong_R: FloatArray, held_P: NDArray[np.bool_]) -> FloatArray:
    """Half of the confidence interval of each parameter, from the slopes of the errors at the solution.

    The errors' own variance stands for that of the measurements (Seber and Wild, Nonlinear Regression,
    section 5.1), so that what the model cannot follow widens the interval too.
    """
    free = len(wrong_R) - int((~held_P).sum())
    interval_P = np.where(held_P, 0.0, np.inf)
    if free <= 0 or held_P.all():
        return interval_P
    slope_RF = slope_RP[:, ~held_P]
    scale_F = np.linalg.norm(slope_RF, axis=0)
    if (scale_F == 0).any():
        return interval_P
    normal_FF = (slope_RF / scale_F).T @ (slope_RF / scale_F)
    if np.linalg.cond(normal_FF) > 1e12:
        return interval_P
    variance_F = np.diag(np.linalg.inv(normal_FF)) / scale_F**2 * (wrong_R**2).sum() / free
    interval_P[~held_P] = t.ppf((1 + _CONFIDENCE) / 2, free) * np.sqrt(variance_F)
    return interval_P
