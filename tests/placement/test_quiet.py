"""A solver that writes to the standard output, as HiGHS 1.16 does, must not stand before a result there."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from typing import Any

import pulp
import pytest

from placement.solvers import programme as module
from placement.solvers.programme import Effort, Outcome, solve_programme
from placement.solvers.quiet import quiet


def test_a_solver_that_prints_is_not_heard(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = Outcome(None, -math.inf, False)

    def banner(*_: Any) -> Outcome:
        os.write(1, b"Running HiGHS\n")
        ctypes.CDLL(None).puts(b"of C, which keeps it in a buffer")
        return found

    monkeypatch.setattr(module, "_highs", banner)
    os.write(1, b"before\n")
    assert solve_programme(pulp.LpProblem("p"), Effort(1)) is found
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "before\nafter\n"


def test_threads_may_solve_side_by_side(capfd: pytest.CaptureFixture[str]) -> None:
    """The one that leaves first does not let the other speak, the last one opens again."""
    inside, left = threading.Event(), threading.Event()

    def second() -> None:
        with quiet():
            inside.set()
            left.wait(10)
            os.write(1, b"second\n")

    thread = threading.Thread(target=second)
    with quiet():
        thread.start()
        assert inside.wait(10)
    left.set()
    thread.join()
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"


def test_a_closed_output_stays_closed() -> None:
    kept = os.dup(1)
    os.close(1)
    try:
        with quiet():
            pass
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(1)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
