"""Watching ranks: what is said of which fault, of records made up and of real processes without torch."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from executor.ranks.progress import Progress, Record, State, progress_file
from executor.ranks.watch import Watcher

pytestmark = pytest.mark.executor

RUNNING = Record(0, 1000, State.RUNNING, 0, 7, 100.0, 1, 2, 5, "experts", "")


def ranks(*changes: dict[str, Any]) -> list[Record]:
    """Ranks 0, 1, … that all run, but for these changes."""
    return [replace(RUNNING, rank=rank, pid=1000 + rank, **change) for rank, change in enumerate(changes)]


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    progress = Progress(tmp_path / "p", 0, 3)
    progress.patience_s = 10.0
    return progress


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "p", 4, 2)
    assert progress.read() == []
    mark = progress.mark(5)
    mark.enter("experts", 1, 2, 30)
    # Another process opens the same file later.
    (record,) = Progress(tmp_path / "p", 4, 2).read()
    assert (record.rank, record.pid, record.state, record.count) == (5, os.getpid(), State.RUNNING, 2)
    assert (record.phase, record.repeat, record.step, record.layer) == ("experts", 1, 2, 30)
    assert 0 <= time.monotonic() - record.beat_s < 60
    mark.fail("ä" * 1000, 2)
    (record,) = progress.read()
    assert (record.state, record.exit_code, record.cause[:3]) == (State.FAILED, 2, "äää")
    mark.fail("", 1, lost=True)
    assert progress.read()[0].state is State.LOST
    mark.done()
    assert progress.read()[0].state is State.DONE


def test_a_place_in_words() -> None:
    assert replace(RUNNING, repeat=-1).place == "experts (layer 5, step 2, warm-up)"
    assert replace(RUNNING, layer=-1).place == "experts (step 2, repeat 1)"
    assert replace(RUNNING, step=-1, layer=-1).place == "experts"


def said(watcher: Watcher, records: list[Record], *dead: int, now_s: float = 100.0) -> str | None:
    """The verdict, when the causes of a fault had time to show."""
    watcher.look(records, dead, now_s)
    verdict = watcher.look(records, (), now_s + 1)
    return None if verdict is None else verdict.message


def test_healthy_ranks_go_on(progress: Progress) -> None:
    assert said(Watcher(progress), ranks({}, {}, {"state": State.DONE}), 1002) is None


def test_the_first_to_die_is_named(progress: Progress) -> None:
    watcher, records = Watcher(progress), ranks({}, {}, {})
    assert watcher.look(records, [1001], 100.0) is None
    assert watcher.look(records, [1000, 1001, 1002], 100.1) is None
    verdict = watcher.look(records, [], 100.6)
    assert verdict is not None
    assert verdict.message == "rank 1 died in experts (layer 5, step 2, repeat 1)"


def test_a_cause_counts_more_than_a_death_that_may_follow_from_it(progress: Progress) -> None:
    failed = {"state": State.FAILED, "cause": "KeyError: 7", "exit_code": 1, "beat_s": 99.0}
    lost = {"state": State.LOST, "cause": "Connection closed by peer", "exit_code": 1}
    records = ranks(lost, {}, failed)
    expected = "rank 2 failed in experts (layer 5, step 2, repeat 1): KeyError: 7"
    assert said(Watcher(progress), records, 1001) == expected


def test_a_death_counts_more_than_a_lost_connection(progress: Progress) -> None:
    lost = {"state": State.LOST, "cause": "Connection closed by peer", "exit_code": 1, "beat_s": 1.0}
    records = ranks(lost, {})
    assert (
        said(Watcher(progress), records, 1000, 1001) == "rank 1 died in experts (layer 5, step 2, repeat 1)"
    )
    expected = "rank 0 lost the other ranks in experts (layer 5, step 2, repeat 1): Connection closed by peer"
    assert said(Watcher(progress), records, 1000) == expected


def test_an_input_at_fault_needs_no_rank(progress: Progress) -> None:
    failed = {"state": State.FAILED, "cause": "plan.json: is missing", "exit_code": 2}
    watcher = Watcher(progress)
    watcher.look(ranks(failed, failed), [], 100.0)
    verdict = watcher.look(ranks(failed, failed), [], 101.0)
    assert verdict is not None
    assert verdict.plain()["message"] == "plan.json: is missing"
    assert verdict.plain()["exit_code"] == 2


def looks(watcher: Watcher, records: list[Record], first_s: float, last_s: float) -> str | None:
    """The first verdict, looking every second from one time to another."""
    for now_s in [*np.arange(first_s, last_s), last_s]:
        verdict = watcher.look(records, [], float(now_s))
        if verdict is not None:
            return verdict.message
    return None


def test_the_rank_that_is_behind_hangs_not_those_that_wait_for_it(progress: Progress) -> None:
    records = ranks({"count": 8, "phase": "combine", "beat_s": 100.1}, {"beat_s": 100.0})
    watcher = Watcher(progress)
    assert looks(watcher, records, 100.0, 109.9) is None
    assert looks(watcher, records, 110.2, 110.2) == (
        "rank 1 hangs in experts (layer 5, step 2, repeat 1): nothing happened for 10 s"
    )


def test_slow_ranks_are_given_more_time(progress: Progress) -> None:
    """A layer that takes 5 s may take up to 20 s before it is taken to hang."""
    watcher = Watcher(progress)
    for beat_s in (100.0, 105.0):
        records = ranks({"count": int(beat_s), "beat_s": beat_s})
        assert looks(watcher, records, beat_s, beat_s + 4.9) is None
    assert looks(watcher, records, 110.0, 124.9) is None
    assert looks(watcher, records, 125.1, 125.1) is not None


def test_preparations_do_not_make_it_patient(progress: Progress) -> None:
    progress.patience_s = 60.0
    watcher = Watcher(progress)
    assert looks(watcher, ranks({"count": 1, "layer": -1, "beat_s": 50.0}), 50.0, 100.0) is None
    progress.patience_s = 10.0
    records = ranks({"count": 2, "beat_s": 100.0})
    assert looks(watcher, records, 100.0, 109.9) is None
    assert looks(watcher, records, 110.1, 110.1) is not None


def test_who_slept_itself_blames_nobody(progress: Progress) -> None:
    """Watcher and ranks stopped together, from 101 to 500, as when somebody wants the machine for himself."""
    watcher, records = Watcher(progress), ranks({"beat_s": 100.0})
    assert looks(watcher, records, 100.0, 101.0) is None
    assert looks(watcher, records, 500.0, 509.9) is None
    assert looks(watcher, records, 510.1, 510.1) is not None


def test_the_file_of_a_run_is_that_of_one_process() -> None:
    assert progress_file(os.getpid()) == progress_file(os.getpid()) != progress_file(os.getppid())
    assert str(os.getpid()) in progress_file(os.getpid()).name


# Ranks without torch: each does one thing and then waits for its end.
RANK = """
import sys, time
from pathlib import Path
from executor.ranks.progress import Progress
file, rank, does = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
progress = Progress(file, 0, 2)
mark = progress.mark(rank)
mark.enter("experts", 0, 3, 5)
if does == "fail":
    mark.fail("ValueError: 7", 1)
elif does == "done":
    mark.done()
    sys.exit()
time.sleep(60)
"""


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.wait()


def watched(
    children: list[subprocess.Popen[bytes]],
    folder: Path,
    does: tuple[str, str],
    *,
    patience_s: float = 30.0,
    agent: int = 0,
) -> subprocess.Popen[str]:
    """A watcher of two ranks, both of which are there; their agent is one of ``children``, the first."""
    file = folder / "p"
    progress = Progress(file, 0, 2)
    progress.patience_s = patience_s
    children.append(subprocess.Popen(["sleep", "60"]))
    for rank, each in enumerate(does):
        children.append(subprocess.Popen([sys.executable, "-c", RANK, file, str(rank), each]))
    until = time.monotonic() + 30
    while len(progress.read()) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    words = [str(word) for word in (file, children[agent].pid, 0, 2, folder)]
    return subprocess.Popen(
        [sys.executable, "-m", "executor.ranks.watch", *words], stderr=subprocess.PIPE, text=True
    )


def ended(watcher: subprocess.Popen[str], children: list[subprocess.Popen[bytes]], folder: Path) -> str:
    """What the watcher says when no rank is left; their agent ends after them."""
    try:
        for rank in children[1:]:
            rank.wait(20)
        children[0].kill()
        _, said = watcher.communicate(timeout=5)
    finally:
        watcher.kill()
        watcher.communicate()
    assert not (folder / "p").exists()
    return said


def test_a_killed_rank(children: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    watcher = watched(children, tmp_path, ("wait", "wait"))
    children[2].kill()
    children[1].wait(20)
    # Torchrun says much of failed ranks: the cause comes after it.
    assert watcher.stderr is not None
    assert not select.select([watcher.stderr], [], [], 0.5)[0]
    said = ended(watcher, children, tmp_path)
    assert said == "executor: rank 1 died in experts (layer 5, step 3, repeat 0)\n"
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure == {
        "format": "moesim.failure/1",
        "message": "rank 1 died in experts (layer 5, step 3, repeat 0)",
        "exit_code": 1,
        "rank": 1,
        "pid": children[2].pid,
        "phase": "experts",
        "repeat": 0,
        "step": 3,
        "layer": 5,
        "cause": "died",
    }


def test_a_stopped_rank(children: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    watcher = watched(children, tmp_path, ("wait", "wait"))
    children[1].send_signal(signal.SIGSTOP)
    said = ended(watcher, children, tmp_path)
    assert said == "executor: rank 0 has been stopped by a signal in experts (layer 5, step 3, repeat 0)\n"


def test_a_rank_that_hangs(children: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    watcher = watched(children, tmp_path, ("done", "wait"), patience_s=1.0)
    assert "rank 1 hangs in experts (layer 5, step 3, repeat 0)" in ended(watcher, children, tmp_path)


def test_a_rank_that_fails(children: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    watcher = watched(children, tmp_path, ("fail", "wait"))
    assert "rank 0 failed in experts (layer 5, step 3, repeat 0): ValueError: 7" in ended(
        watcher, children, tmp_path
    )


def test_ranks_that_are_done(children: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    watcher = watched(children, tmp_path, ("done", "done"))
    assert ended(watcher, children, tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_started_itself(children: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    watcher = watched(children, tmp_path, ("wait", "done"), agent=1)
    children[1].kill()
    assert "rank 0 died in experts (layer 5, step 3, repeat 0)" in ended(watcher, children, tmp_path)


def test_ranks_end_with_the_process_that_started_them(
    children: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    watcher = watched(children, tmp_path, ("wait", "wait"))
    children[0].kill()
    assert ended(watcher, children, tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_rank_on_its_own_says_itself_why_it_fails(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from executor.plan.errors import PlanError\n"
        "from executor.ranks.supervised import supervised\n"
        "def work(*_): raise PlanError('is missing', field='x')\n"
        f"supervised(Path({str(tmp_path)!r}), (), work)\n"
    )
    # Until its watcher has ended too, so that what that would say is seen.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "executor: x: is missing\n")
    assert json.loads((tmp_path / "failure.json").read_text())["message"] == "x: is missing"
