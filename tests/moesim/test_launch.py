"""What is said of ranks that failed, from what their watcher wrote and how they ended."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from moesim.errors import ExecutionError
from moesim.live import launch as module
from moesim.live.launch import launch, torchrun

# The exit codes of two ranks, by their pids.
ENDED = {7643: -9, 7644: -15}


def failure(ended: dict[int, int], log: str = "", rank: int = 0, **found: object) -> ExecutionError:
    verdict = {"exit_code": 1, "pid": 7643, "rank": rank} | found if found else {}
    return module._failure(verdict, rank, ended, log)


def test_a_signal_is_named() -> None:
    error = failure(ENDED, message="rank 0 died in x", cause="died")
    assert str(error) == "rank 0 died in x: ended by SIGKILL, by hand or for want of memory"
    assert error.exit_code == 1
    error = failure(ENDED, message="rank 1 died in x", cause="died", pid=7644)
    assert str(error) == "rank 1 died in x: ended by SIGTERM"
    # Not the signal with which a rank at fault was ended afterwards.
    error = failure(ENDED, message="rank 0 hangs in x", cause="hangs: for 10 s")
    assert str(error) == "rank 0 hangs in x"


def test_an_input_at_fault_keeps_its_exit_code_and_needs_no_log() -> None:
    error = failure(ENDED, "a warning", message="plan.json: is missing", cause="failed: …", exit_code=2)
    assert (str(error), error.exit_code, error.log) == ("plan.json: is missing", 2, ())


def test_the_last_lines_of_the_rank_at_fault_are_told() -> None:
    log = "\n\n".join(f"line {number}" for number in range(40))
    error = failure(ENDED, log, message="rank 0 failed in x: KeyError: 7", cause="failed: KeyError: 7")
    assert list(error.log) == [f"line {number}" for number in range(30, 40)]


@pytest.mark.parametrize(
    ("log", "code", "said"),
    [
        ("Traceback\n  File x\nImportError: no torch\n", 1, "ImportError: no torch"),
        ("", 3, "exit code 3"),
        ("", -15, "ended by SIGTERM"),
    ],
)
def test_without_a_verdict_a_rank_has_the_word(log: str, code: int, said: str) -> None:
    assert str(failure({7643: 0, 7644: code}, log, rank=1)) == f"rank 1 could not run: {said}"


def test_lines_to_be_typed() -> None:
    assert torchrun(2, "executor", ["a plan", "-o", "OUT"]) == (
        "torchrun --standalone --nproc-per-node 2 -m executor 'a plan' -o OUT"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="handles of processes are Linux's")
@pytest.mark.parametrize("on_linux", [True, False])
def test_what_was_started_ends_with_a_process_that_is_killed(on_linux: bool) -> None:
    """By a signal where the system gives one, by a look at who the parent is elsewhere."""
    platform = "" if on_linux else "import sys; sys.platform = 'other'; "
    child = (
        f"{platform}import os, time; from traces.base.processes import end_with; "
        "end_with(os.getppid()); print(os.getpid(), flush=True); time.sleep(60)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        handle = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        assert select.select([handle], [], [], 10)[0]
    os.close(handle)


def test_who_has_lost_its_parent_already_does_not_begin() -> None:
    code = "from traces.base.processes import end_with; end_with(1 << 22); print('begun')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.executor
def test_a_module_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_VERDICT_S", 0.0)
    with pytest.raises(
        ExecutionError, match=r"rank 0 could not run: .*No module named executor.nothing"
    ) as error:
        launch(1, "executor.nothing", [], tmp_path)
    assert error.value.exit_code == 1
