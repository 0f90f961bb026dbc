"""The experiment on placements, on problems small enough for a test."""

from __future__ import annotations

import numpy as np

from experiments.placement.experiment import SETTINGS, compare
from experiments.placement.loads import FAMILIES, family, windows_of
from placement.problem.problem import Problem


def test_swap_lies_between_the_balancer_and_its_bound() -> None:
    loads = [np.random.default_rng(seed).lognormal(0, 1, (2, 24)) for seed in range(2)]
    cell = compare([Problem.of(load_LE, 6, 30) for load_LE in loads])
    assert cell.eplb <= cell.swap <= 1.0
    assert cell.first <= cell.bound <= 1.0 + 1e-9
    assert cell.gap_L.shape == (2,)
    assert (cell.gap_L >= 0.0).all()


def test_windows_hold_every_request_once() -> None:
    load_RLE = np.random.default_rng(0).integers(0, 9, (7, 2, 4)).astype(float)
    load_WLE = windows_of(load_RLE, 3)
    np.testing.assert_allclose(load_WLE[0], load_RLE[:3].sum(axis=0))
    np.testing.assert_allclose(load_WLE.sum(axis=0), load_RLE.sum(axis=0))


def test_settings_are_those_that_were_published() -> None:
    assert [len(setting.published) for setting in SETTINGS] == [len(FAMILIES)] * len(SETTINGS)
    assert SETTINGS[-1].problem("zipf 1.0", 0).groups == 8
    assert SETTINGS[0].problem("zipf 1.0", 0).groups == 1
    np.testing.assert_allclose(np.sort(family("zipf 1.0", 1))[:, ::-1][:, :3], [[1, 1 / 2, 1 / 3]] * 58)
