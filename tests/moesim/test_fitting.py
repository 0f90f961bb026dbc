"""Confidence intervals of fits, against formulas and against what no data can tell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from moesim.calibration.fitting import FloatArray, Problem, fit

AT_R = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
NOISE_R = np.array([0.02, -0.01, 0.01, -0.03, 0.01])


def proportional(parameters_P: FloatArray) -> FloatArray:
    predicted_R: FloatArray = parameters_P[0] * AT_R
    return predicted_R


def test_the_interval_of_a_mean_is_that_of_student() -> None:
    """Errors of a·x against m are a·x/m - 1: a regression on x/m, with its textbook interval."""
    measured_R = 3.0 * AT_R * (1 + NOISE_R)
    found = fit(Problem(proportional, measured_R, np.ones(1), np.zeros(1), np.full(1, 10.0)))
    slope_R = AT_R / measured_R
    best = slope_R.sum() / (slope_R**2).sum()
    variance = ((best * slope_R - 1) ** 2).sum() / 4 / (slope_R**2).sum()
    assert found.parameters_P[0] == pytest.approx(best, rel=1e-6)
    assert found.interval_P[0] == pytest.approx(t.ppf(0.975, 4) * np.sqrt(variance), rel=1e-3)


def test_parameters_that_only_act_together_have_no_interval() -> None:
    problem = Problem(
        lambda parameters_P: parameters_P.sum() * AT_R,
        3.0 * AT_R * (1 + NOISE_R),
        np.ones(2),
        np.zeros(2),
        np.full(2, 10.0),
    )
    assert np.isinf(problem.solve()[1]).all()


def test_a_parameter_that_does_nothing_has_no_interval() -> None:
    problem = Problem(proportional, 3.0 * AT_R, np.ones(2), np.zeros(2), np.full(2, 10.0))
    assert np.isinf(problem.solve()[1]).all()


def test_a_parameter_on_its_bound_has_an_interval_of_nothing() -> None:
    problem = Problem(proportional, 3.0 * AT_R, np.full(1, 0.5), np.zeros(1), np.full(1, 2.0))
    parameters_P, interval_P = problem.solve()
    assert parameters_P[0] == pytest.approx(2.0)
    assert interval_P.tolist() == [0.0]


def test_groups_are_left_out_together() -> None:
    """Two groups with slopes 2 and 3: each is predicted with the other's."""
    at_R, group_R = np.array([1.0, 2.0, 1.0, 2.0]), np.array([0, 0, 1, 1])
    measured_R = at_R * np.where(group_R == 0, 2.0, 3.0)
    problem = Problem(lambda p: p[0] * at_R, measured_R, np.ones(1), np.zeros(1), np.full(1, 10.0))
    np.testing.assert_allclose(fit(problem, group_R).left_out_R, [3.0, 6.0, 2.0, 4.0], rtol=1e-6)


def test_a_disturbed_row_pulls_less_with_the_soft_loss() -> None:
    measured_R = 3.0 * AT_R * np.array([1.0, 1.0, 1.0, 1.0, 2.0])
    slopes = [
        Problem(proportional, measured_R, np.ones(1), np.zeros(1), np.full(1, 10.0), loss=loss).solve()[0][0]
        for loss in ("linear", "soft_l1")
    ]
    assert abs(slopes[1] - 3.0) < abs(slopes[0] - 3.0) / 2
