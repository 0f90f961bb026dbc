"""Few parameters, fitted to relative errors inside physical bounds, with rows left out in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t

FloatArray = NDArray[np.float64]

# Predicted cells, one for each row, for parameters P.
Model = Callable[[FloatArray], FloatArray]

_CONFIDENCE = 0.95

SOFT = 0.1
"""Relative error beyond which the loss ``soft_l1`` grows like the error rather than its square."""


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


@dataclass(frozen=True)
class Problem:
    """What to fit: predictions for parameters, what was measured, and how far the parameters may go.

    Attributes:
        measured_R: above zero.
        start_P, lower_P, upper_P: where to begin, and the bounds.
        loss: of ``scipy.optimize.least_squares``; with ``soft_l1`` errors beyond ``SOFT`` pull less.
    """

    model: Model
    measured_R: FloatArray
    start_P: FloatArray
    lower_P: FloatArray
    upper_P: FloatArray
    loss: str = "linear"

    def solve(self, kept_R: NDArray[np.bool_] | None = None) -> tuple[FloatArray, FloatArray]:
        """Parameters of the least squares of relative errors over the kept rows, and half their intervals."""
        kept = slice(None) if kept_R is None else kept_R

        def errors(parameters_P: FloatArray) -> FloatArray:
            wrong_R: FloatArray = (self.model(parameters_P) / self.measured_R - 1.0)[kept]
            return wrong_R

        # Maxima over links and roofs have kinks: steps wide enough to see across them.
        found = least_squares(
            errors,
            self.start_P,
            bounds=(self.lower_P, self.upper_P),
            x_scale=self.upper_P - self.lower_P,
            diff_step=1e-4,
            loss=self.loss,
            f_scale=SOFT,
        )
        return found.x, _interval(found.jac, found.fun, found.active_mask != 0)

    def starting(self, parameters_P: FloatArray) -> Problem:
        """The same from other parameters; a solver may not start on a bound."""
        margin_P = 1e-6 * (self.upper_P - self.lower_P)
        inside_P = np.clip(parameters_P, self.lower_P + margin_P, self.upper_P - margin_P)
        return replace(self, start_P=inside_P)


def fit(problem: Problem, group_R: NDArray[np.int64] | None = None) -> Fit:
    """Solve a problem for all rows, and without each group of rows; by default each row is its own group."""
    parameters_P, interval_P = problem.solve()
    again = problem.starting(parameters_P)
    group_R = np.arange(len(problem.measured_R)) if group_R is None else group_R
    left_out_R = np.empty(len(problem.measured_R))
    for group in np.unique(group_R):
        own_R = group_R == group
        left_out_R[own_R] = problem.model(again.solve(~own_R)[0])[own_R]
    return Fit(parameters_P, interval_P, problem.model(parameters_P), left_out_R)


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
