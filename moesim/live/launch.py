"""Starting ranks on this machine, and what becomes of them: they end with this process, whatever ends it.

They meet in a private folder and talk over the loopback, so that nothing here is open to the network.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import moesim
from moesim.errors import ExecutionError
from traces.base.input_file import read_json
from traces.base.parts import scratch_folder

_LOOK_S = 0.1
# The watcher of the ranks writes its verdict a moment after the first of them ends.
_VERDICT_S = 3.0
_LOG_LINES = 10


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
    command = [sys.executable, "-m", module, *map(str, arguments)]
    started: list[subprocess.Popen[bytes]] = []
    with scratch_folder() as meeting:
        try:
            for rank in range(ranks):
                with _log(meeting, rank).open("wb") as log:
                    started.append(
                        subprocess.Popen(
                            command,
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            stderr=log,
                            env=_environment(rank, ranks, meeting),
                            # Ctrl-C reaches this process alone, which then ends the others.
                            start_new_session=True,
                        )
                    )
            while not any(codes := [process.poll() for process in started]):
                if None not in codes:
                    return
                time.sleep(_LOOK_S)
            found = _verdict(out / "failure.json")
        finally:
            for process in started:
                process.kill()
                process.wait()
        ended = {process.pid: process.returncode for process in started}
        rank = found["rank"] if found else next(rank for rank, code in enumerate(codes) if code)
        raise _failure(found, rank, ended, _log(meeting, rank).read_text(errors="replace"))


def _environment(rank: int, ranks: int, meeting: Path) -> dict[str, str]:
    """The same code in every process, whatever the current folder holds; one thread unless told otherwise."""
    root = str(Path(moesim.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    own = {
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": "1",
        "MOESIM_MEETING": str(meeting),
        "MOESIM_LAUNCHER": str(os.getpid()),
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        # Where gloo and NCCL listen, whatever a cluster's environment says.
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": f"={loopback}",
    }
    return {"OMP_NUM_THREADS": "1"} | os.environ | own


def _log(meeting: Path, rank: int) -> Path:
    return meeting / f"rank-{rank}.log"


def _verdict(file: Path) -> dict[str, Any]:
    """What the watcher found; empty where it had not even started."""
    until = time.monotonic() + _VERDICT_S
    while not file.exists():
        if time.monotonic() > until:
            return {}
        time.sleep(_LOOK_S)
    found: dict[str, Any] = read_json(file, "what the watcher found", ExecutionError)
    return found


def _failure(found: dict[str, Any], rank: int, ended: dict[int, int], log: str) -> ExecutionError:
    """One message, and the last lines of the rank at fault where the user's input is not.

    Args:
        found: the watcher's verdict.
        ended: the exit code of each process.
        log: what the rank said on its standard error.
    """
    lines = [line for line in log.splitlines() if line.strip()][-_LOG_LINES:]
    if not found:
        code = list(ended.values())[rank]
        how = f"exit code {code}" if code > 0 else _signal(code)
        return ExecutionError(f"rank {rank} could not run: {lines[-1] if lines else how}", log=lines)
    message, code = found["message"], ended.get(found["pid"], 0)
    if found["cause"] == "died" and code < 0:
        message += f": {_signal(code)}"
    exit_code = found["exit_code"]
    return ExecutionError(message, exit_code=exit_code, log=() if exit_code == 2 else lines)


def _signal(code: int) -> str:
    name = signal.Signals(-code).name
    return f"ended by {name}" + (", by hand or for want of memory" if name == "SIGKILL" else "")
