"""Whole servers: the targets, and that nothing was fitted to reach them."""

from __future__ import annotations

from pathlib import Path

import pytest

import experiments.servers
from experiments.comparison import Comparison, Row
from experiments.servers.experiment import servers
from moesim.spec.scenario import load_scenario

FOLDER = Path(experiments.servers.__file__).parent


@pytest.fixture(scope="module")
def result() -> Comparison:
    return servers()


def one(rows: tuple[Row, ...], *words: str) -> Row:
    (found,) = (row for row in rows if all(word in row.case for word in words))
    return found


def test_levels_are_within_10_percent(result: Comparison) -> None:
    levels = [row for row in result.rows if row.unit == "tokens/s a node"]
    assert [row.measured for row in levels] == [59300, 22300]
    assert max(abs(row.error) for row in levels) <= 0.10
    assert abs(one(result.checks, "DeepSeek, prefill").error) <= 0.10


@pytest.mark.parametrize(
    ("words", "least", "most"),
    [(("prefill", "two"), 0.27, 0.35), (("at 256",), 0.255, 0.255), (("at 32",), -0.27, -0.27)],
)
def test_gains_of_two_micro_batches_are_within_10_points(
    result: Comparison, words: tuple[str, ...], least: float, most: float
) -> None:
    gain = one(result.rows, *words).predicted - 1
    assert least - 0.10 <= gain <= most + 0.10


def test_nothing_is_fitted(result: Comparison) -> None:
    assert not result.parameters
    assert all(row.left_out is None for row in result.rows)


def test_transfers_take_longer_beside_kernels_than_alone_and_no_longer_than_a_profiler_shows(
    result: Comparison,
) -> None:
    """Alone, by DeepEP's table, 2,420 and 4,670 µs."""
    for name, alone_us in (("dispatch", 2420), ("combine", 4670)):
        row = one(result.checks, "training", name)
        assert alone_us < row.predicted <= row.measured


def test_matrices_beside_transfers_are_within_10_percent(result: Comparison) -> None:
    for name in ("gate and up", "down"):
        assert abs(one(result.checks, "training", name).error) <= 0.10


@pytest.mark.parametrize("name", ["prefill", "decode", "training"])
def test_each_scenario_is_one_that_the_command_takes(name: str) -> None:
    assert load_scenario(str(FOLDER / f"{name}.yaml")).model.name == "deepseek-v3"
