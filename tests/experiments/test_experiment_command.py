"""Fits that leave rows out, and what an experiment prints, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.command import run_command
from experiments.comparison import Comparison, Parameter, Row, summary
from moesim.calibration.fitting import FloatArray, Problem, fit


def example() -> Comparison:
    """Two fitted rows and a check."""
    rows = (Row("a", "µs", 100.0, 110.0, 120.0), Row("b", "GB/s", 50.0, 48.0, 47.0))
    return Comparison("example", "nowhere", rows, (Row("c", "µs", 10.0, 9.0),), (Parameter("p", "1", "≤ 2"),))


def line(at_R: FloatArray, parameters_P: FloatArray) -> FloatArray:
    values_R: FloatArray = parameters_P[0] + parameters_P[1] * at_R
    return values_R


def test_a_fit_finds_what_made_the_rows() -> None:
    at_R = np.array([1.0, 2.0, 4.0, 8.0])
    found = fit(
        Problem(
            lambda parameters_P: line(at_R, parameters_P),
            line(at_R, np.array([3.0, 0.5])),
            np.array([1.0, 1.0]),
            np.zeros(2),
            np.full(2, 10.0),
        )
    )
    np.testing.assert_allclose(found.parameters_P, [3.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found.left_out_R, found.predicted_R, rtol=1e-6)


def test_a_row_left_out_does_not_pull_its_own_prediction() -> None:
    """A row 40 % above the line of the others is predicted on that line when it is left out."""
    at_R = np.arange(1.0, 9.0)
    truth_R = line(at_R, np.array([3.0, 0.5]))
    measured_R = truth_R * np.where(at_R == 5.0, 1.4, 1.0)
    found = fit(
        Problem(
            lambda parameters_P: line(at_R, parameters_P),
            measured_R,
            np.array([1.0, 1.0]),
            np.zeros(2),
            np.full(2, 10.0),
        )
    )
    assert found.left_out_R[4] == pytest.approx(truth_R[4], rel=1e-6)
    assert found.predicted_R[4] > 1.01 * truth_R[4]


def test_a_fit_stays_inside_its_bounds() -> None:
    at_R = np.array([1.0, 2.0, 3.0])
    found = fit(
        Problem(
            lambda parameters_P: parameters_P[0] * at_R, 5 * at_R, np.array([0.5]), np.zeros(1), np.ones(1)
        )
    )
    assert found.parameters_P[0] == pytest.approx(1.0)
    np.testing.assert_allclose(found.left_out_R, at_R, rtol=1e-3)


def test_summary_by_hand() -> None:
    assert summary(example().rows) == pytest.approx(
        {"mean_abs_error": 0.07, "max_abs_error": 0.1, "loo_mean_abs_error": 0.13}
    )


def test_json_is_one_object_as_promised(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(example, ["--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["source"] == "nowhere"
    assert printed["rows"][0] == {
        "case": "a",
        "measured": 100.0,
        "predicted": 110.0,
        "error": pytest.approx(0.1),
        "unit": "µs",
        "loo_error": pytest.approx(0.2),
    }
    assert printed["summary"] == pytest.approx(summary(example().rows))


def test_the_table_shows_every_row_and_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(example, [])
    printed = capsys.readouterr().out
    for text in ("+10.0%", "+20.0%", "-4.0%", "-10.0%", "fitted: p 1 (≤ 2)", "mean error 7.0%"):
        assert text in printed


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_equal_numbers_give_equal_figures(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
    for path in paths:
        run_command(example, ["--json", "-o", str(path)])
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert b"<svg" in first if suffix == ".svg" else first.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("out", "rule"), [("figure.pdf", "must end in .svg or .png"), ("missing/figure.svg", "is not a folder")]
)
def test_a_figure_that_cannot_be_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, rule: str
) -> None:
    def never() -> Comparison:
        raise AssertionError("the experiment ran")

    with pytest.raises(SystemExit) as stopped:
        run_command(never, ["-o", str(tmp_path / out)])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert rule in printed.err
    assert len(printed.err.splitlines()) == 1
