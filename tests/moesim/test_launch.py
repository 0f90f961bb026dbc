"""What is said of ranks that failed, from what their watcher wrote and what torchrun printed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from moesim.errors import ExecutionError
from moesim.live import launch as module
from moesim.live.launch import launch, torchrun

LOG = """
W1122 api.py:1028] Sending process 7644 closing signal SIGTERM
  exitcode  : -9 (pid: 7643)
  traceback : Signal 9 (SIGKILL) received by PID 7643
  traceback : Signal 15 (SIGTERM) received by PID 7644
"""


def failure(folder: Path, log: str, code: int, **found: object) -> ExecutionError:
    if found:
        (folder / "failure.json").write_text(json.dumps({"exit_code": 1, "pid": 7643} | found))
    return module._failure(folder, log, code)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_VERDICT_S", 0.0)


def test_a_signal_is_named_where_torchrun_knows_it(tmp_path: Path) -> None:
    error = failure(tmp_path, LOG, 1, message="rank 0 died in x", cause="died")
    assert str(error) == "rank 0 died in x: ended by SIGKILL, by hand or for want of memory"
    assert error.exit_code == 1
    error = failure(tmp_path, LOG, 1, message="rank 1 died in x", cause="died", pid=7644)
    assert str(error) == "rank 1 died in x: ended by SIGTERM"
    # Not the signal with which a rank at fault was ended afterwards.
    error = failure(tmp_path, LOG, 1, message="rank 0 hangs in x", cause="hangs: for 10 s")
    assert str(error) == "rank 0 hangs in x"


def test_an_input_at_fault_keeps_its_exit_code(tmp_path: Path) -> None:
    error = failure(tmp_path, LOG, 1, message="plan.json: is missing", cause="failed: …", exit_code=2)
    assert (str(error), error.exit_code) == ("plan.json: is missing", 2)


@pytest.mark.parametrize(
    ("log", "code", "said"),
    [
        ("Traceback\nValueError: a\n  File x\ntorch.distributed.DistNetworkError: port: 29500\nbye", 1, None),
        ("nothing of use", 3, "exit code 3"),
        ("", -15, "ended by SIGTERM"),
    ],
)
def test_without_a_verdict_torchrun_has_the_word(
    tmp_path: Path, log: str, code: int, said: str | None
) -> None:
    said = said or "torch.distributed.DistNetworkError: port: 29500"
    assert str(failure(tmp_path, log, code)) == f"torchrun could not run the ranks: {said}"


def test_lines_to_be_typed() -> None:
    assert torchrun(2, "executor", ["a plan", "-o", "OUT"]) == (
        "torchrun --standalone --nproc-per-node 2 -m executor 'a plan' -o OUT"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="a signal for the death of a parent is Linux's")
def test_what_was_started_ends_with_a_process_that_is_killed() -> None:
    code = (
        "import subprocess; from moesim.live.launch import _end_with_parent; "
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=_end_with_parent()); "
        "print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([child], [], [], 10)[0]
    os.close(child)


@pytest.mark.executor
def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="torchrun could not run the ranks: ") as error:
        launch(1, "executor.nothing", [], tmp_path)
    assert error.value.exit_code == 1
