"""Starting ranks with torchrun, and what becomes of them: they end with this process, whatever ends it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import moesim
from moesim.errors import ExecutionError
from traces.base.input_file import read_json

# The watcher of the ranks writes its verdict a moment after the first of them ends.
_VERDICT_S = 3.0
# torchrun asks its ranks to end, which one that is stopped cannot hear.
_GOODBYE_S = 5.0

_PR_SET_PDEATHSIG = 1  # prctl(2)


def torchrun(ranks: int, module: str, arguments: Sequence[str | Path], *, nodes: int = 1) -> str:
    """The line that runs a module of the executor on so many ranks, to be typed on each of the nodes.

    >>> torchrun(2, "executor", ["plan", "-o", "OUT"])
    'torchrun --standalone --nproc-per-node 2 -m executor plan -o OUT'
    """
    meet = ["--standalone", "--nproc-per-node", str(ranks)]
    if nodes > 1:
        meet = ["--nnodes", str(nodes), "--nproc-per-node", str(ranks // nodes)]
        meet += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500"]
    return shlex.join(["torchrun", *meet, "-m", module, *map(str, arguments)])


def launch(ranks: int, module: str, arguments: Sequence[str | Path], out: Path) -> None:
    """Run a module of the executor on so many ranks of this machine, and wait for them.

    Whatever ends the wait, Ctrl-C included, no rank is left afterwards.

    Args:
        module: such as ``executor``.
        arguments: of its command line.
        out: where its watcher leaves ``failure.json`` if the ranks fail.

    Raises:
        ExecutionError: with rank, phase and cause, if they do not all end well.
    """
    if importlib.util.find_spec("torch") is None:
        raise ExecutionError("running for real needs torch: pip install 'moesim[executor]'", exit_code=2)
    line = shlex.split(torchrun(ranks, module, arguments))
    with tempfile.TemporaryDirectory(prefix="moesim-") as own, (Path(own) / "log").open("w+b") as log:
        # torchrun would leave its folder behind.
        command = [sys.executable, "-m", "torch.distributed.run", "--log-dir", own, *line[1:]]
        # Of its own session, so that Ctrl-C reaches this process alone, which then ends the others.
        with _interruptible():
            agent = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
                preexec_fn=_end_with_parent(),
            )
            try:
                exit_code = agent.wait()
            finally:
                _end(agent)
        if exit_code:
            log.seek(0)
            raise _failure(out, log.read().decode(errors="replace"), exit_code)


def _environment() -> dict[str, str]:
    """The same code in every process, whatever the current folder holds; one thread unless told otherwise."""
    root = str(Path(moesim.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # Ranks of one machine meet over its loopback, which needs neither a network nor a host's name.
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    defaults = {"OMP_NUM_THREADS": "1", **loopback}
    return defaults | os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _end_with_parent() -> Callable[[], object] | None:
    """What a new process does first so that it is asked to end when this one has, be it by SIGKILL."""
    if sys.platform != "linux":
        return None
    return partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Inside the block a request to end this process arrives as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _end(agent: subprocess.Popen[Any]) -> None:
    """End torchrun if it still runs; its ranks end with it, or their watcher ends them when it is gone."""
    if agent.poll() is not None:
        return
    agent.terminate()
    try:
        agent.wait(_GOODBYE_S)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()


def _failure(out: Path, log: str, exit_code: int) -> ExecutionError:
    """What the watcher found; where it had not even started, what torchrun says."""
    file = out / "failure.json"
    until = time.monotonic() + _VERDICT_S
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.05)
    if file.exists():
        found = read_json(file, "what the watcher found", ExecutionError)
        message, pid = found["message"], found["pid"]
        ended = re.search(rf"Signal \d+ \((\w+)\) received by PID {pid}\b", log)
        if found["cause"] == "died" and ended:
            killed = ", by hand or for want of memory" if ended[1] == "SIGKILL" else ""
            message += f": ended by {ended[1]}{killed}"
        return ExecutionError(message, exit_code=found["exit_code"])
    faults = re.findall(r"^[\w.]*(?:Error|Exception): .+", log, re.MULTILINE)
    how = f"exit code {exit_code}" if exit_code > 0 else f"ended by {signal.Signals(-exit_code).name}"
    return ExecutionError(f"torchrun could not run the ranks: {faults[-1] if faults else how}")
