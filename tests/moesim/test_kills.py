"""Runs that are ended from outside: nothing lost, nothing left, and the exit code of the signal."""

from __future__ import annotations

import signal
from pathlib import Path
from unittest import mock

import pytest

from moesim.commands.signals import stoppable
from moesim.output import check_folder
from tests.kills import SIGNALS, hurt
from tests.moesim.command import moesim


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc is Linux's")
def test_a_killed_sweep_loses_nothing(tmp_path: Path) -> None:
    """One of each signal, when points are there; `python -m tests.kills` does more, at any moment."""
    with mock.patch("random.Random.random", return_value=0.5):
        codes = hurt(tmp_path, len(SIGNALS), jobs=2, points=40, seed=0)
    assert codes == {-9: 1, 143: 1, 130: 1}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_ends_a_command_as_ctrl_c_does(here: Path, number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with mock.patch(
        "moesim.analysis.result.simulate_scenario", side_effect=lambda *_: signal.raise_signal(number)
    ):
        done = moesim("run", "s.yaml", "-o", "out")
    assert (done.code, done.out) == (code, "")
    assert done.err.endswith("moesim: interrupted\n")
    assert not (here / "out").exists()
    assert signal.getsignal(number) is before


def test_an_interruption_that_python_wraps_is_still_one(here: Path) -> None:
    class Descriptor:
        def __set_name__(self, *_: object) -> None:
            signal.raise_signal(signal.SIGTERM)

    def simulate(*_: object) -> None:
        type("Made", (), {"field": Descriptor()})

    with mock.patch("moesim.analysis.result.simulate_scenario", side_effect=simulate):
        done = moesim("run", "s.yaml")
    assert (done.code, done.err.endswith("moesim: interrupted\n")) == (143, True)


def test_a_signal_that_the_user_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_killed_run_left_does_not_make_a_folder_full(tmp_path: Path) -> None:
    (tmp_path / ".out.moesim-abcd1234.part").mkdir()
    check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
