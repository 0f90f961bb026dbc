"""The process that watches the ranks of a node: when one of them fails, dies or hangs, it ends them all.

Local rank 0 starts it, under ``torchrun`` by hand as under ``moesim execute``. It is a process of its own so
that it takes no time of a rank that is being measured, and lives when any of them does not.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.ranks.progress import MEETING, Progress, Record, State, is_stopped
from traces.base.errors import MoesimError
from traces.base.files import write_json
from traces.base.text import visible

_POLL_S = 0.2
_SETTLE_S = 0.5
"""From the first sign of a fault to the verdict: the cause of it may show a moment later."""
_STOPPED_S = 5.0
_ASLEEP_S = 2.0
"""A look that comes so late after the one before it says that the watcher itself had been stopped."""
_FACTOR = 4.0
"""A phase may take so many times the longest one so far."""
_REPORT_S = 10.0
"""How long torchrun may take to report its failed ranks before the watcher has the last word."""


@dataclass(frozen=True)
class Verdict:
    """Why a run ends."""

    record: Record
    cause: str

    @property
    def message(self) -> str:
        """One line for the user; an input at fault needs no rank.

        >>> record = Record(1, 99, State.RUNNING, 0, 3, 0.5, 1, 4, 11, "experts", "")
        >>> Verdict(record, "died").message
        'rank 1 died in experts (layer 11, step 4, repeat 1)'
        """
        if self.record.exit_code == MoesimError.exit_code:
            return self.record.cause
        what, colon, why = self.cause.partition(": ")
        return f"rank {self.record.rank} {what} in {self.record.place}{colon}{why}"

    def plain(self) -> dict[str, Any]:
        """What ``failure.json`` holds."""
        record = self.record
        return {
            "format": "moesim.failure/1",
            "message": self.message,
            "exit_code": record.exit_code or 1,
            "rank": record.rank,
            "pid": record.pid,
            "phase": record.phase,
            "repeat": record.repeat,
            "step": record.step,
            "layer": record.layer,
            "cause": self.cause,
        }


class Watcher:
    """Looks at the ranks again and again, and remembers what a look alone does not show."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._dead: list[int] = []
        self._seen: dict[int, Record] = {}
        self._moving_s: dict[int, float] = {}
        self._longest_s = 0.0
        self._looked_s = self._awake_s = -math.inf
        self._fault_s: float | None = None

    def look(self, records: Sequence[Record], dead: Sequence[int], now_s: float) -> Verdict | None:
        """What the ranks' records and the pids that are ``dead`` by now say at the time ``now_s``."""
        if now_s - self._looked_s > _ASLEEP_S:
            # Whatever stopped the watcher may have stopped the ranks: their time begins anew.
            self._awake_s = now_s
            self._moving_s.clear()
        self._looked_s = now_s
        self._dead += [pid for pid in dead if pid not in self._dead]
        stuck = [verdict for record in records if (verdict := self._stuck(record, now_s))]
        failed = any(record.state in (State.FAILED, State.LOST) for record in records)
        died = any(record.pid in self._dead and record.state != State.DONE for record in records)
        if (failed or died) and self._fault_s is None:
            self._fault_s = now_s
        if self._fault_s is not None:
            return self._judge(records) if now_s - self._fault_s >= _SETTLE_S else None
        # Of ranks that wait for each other the one that is behind holds up the rest.
        return min(stuck, key=lambda verdict: verdict.record.count, default=None)

    def _stuck(self, record: Record, now_s: float) -> Verdict | None:
        if record.state != State.RUNNING:
            return None
        before = self._seen.get(record.rank)
        if before is not None and before.count != record.count and before.layer >= 0:
            self._longest_s = max(self._longest_s, record.beat_s - before.beat_s)
        self._seen[record.rank] = record
        if not is_stopped(record.pid):
            self._moving_s[record.rank] = now_s
        elif now_s - self._moving_s.setdefault(record.rank, now_s) > _STOPPED_S:
            return Verdict(record, "has been stopped by a signal")
        limit_s = max(self._progress.patience_s, _FACTOR * self._longest_s)
        still_s = now_s - max(record.beat_s, self._awake_s)
        if still_s > limit_s:
            return Verdict(record, f"hangs: nothing happened for {still_s:.0f} s")
        return None

    def _judge(self, records: Sequence[Record]) -> Verdict | None:
        """Which of several faults was the first; others follow from it."""
        failed = [record for record in records if record.state == State.FAILED]
        if failed:
            first = min(failed, key=lambda record: record.beat_s)
            return Verdict(first, f"failed: {first.cause}")
        by_pid = {record.pid: record for record in records if record.state != State.DONE}
        silent = [by_pid[pid] for pid in self._dead if pid in by_pid and by_pid[pid].state != State.LOST]
        if silent:
            return Verdict(silent[0], "died")
        lost = min(
            (record for record in records if record.state == State.LOST), key=lambda record: record.beat_s
        )
        return Verdict(lost, f"lost the other ranks: {lost.cause}")


class _Processes:
    """Handles of processes, which tell when one ends even if its pid is used again."""

    def __init__(self) -> None:
        self._handles: dict[int, int] = {}
        self._poll = select.poll()

    def add(self, pid: int) -> None:
        if pid not in self._handles:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                self._handles[pid] = handle
                self._poll.register(handle, select.POLLIN)

    def ended(self, pids: Sequence[int], wait_s: float) -> list[int]:
        """Which of them have ended; waits for the first to do so, but no longer than ``wait_s``."""
        ready = {handle for handle, _ in self._poll.poll(wait_s * 1e3)}
        for handle in ready:
            self._poll.unregister(handle)
        return [pid for pid in pids if pid not in self._handles or self._handles[pid] in ready]

    def kill(self, pid: int) -> None:
        if pid in self._handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handles[pid], signal.SIGKILL)


def watch(progress: Progress, agent: int, ranks: int) -> Verdict | None:
    """Watch until all ranks are done, one is at fault, or the process that started them is gone.

    On return no rank that was not done is left.
    """
    processes, watcher = _Processes(), Watcher(progress)
    processes.add(agent)
    while True:
        records = progress.read()
        if len(records) == ranks and all(record.state == State.DONE for record in records):
            return None
        for record in records:
            processes.add(record.pid)
        pids = [record.pid for record in records]
        ended = processes.ended([agent, *pids], _POLL_S)
        # What a rank wrote before it ended is there by now.
        records = progress.read()
        verdict = watcher.look(records, ended, time.monotonic())
        # A rank that nobody started is its own agent, and its death is a fault.
        if verdict is not None or (agent in ended and agent not in pids):
            for record in records:
                if record.state != State.DONE:
                    processes.kill(record.pid)
            return verdict


def main() -> None:
    """``python -m executor.ranks.watch FILE AGENT FIRST RANKS OUT``."""
    file, agent, first, ranks, out = sys.argv[1:]
    progress = Progress(Path(file), int(first), int(ranks))
    try:
        verdict = watch(progress, int(agent), int(ranks))
        # Where the meeting is over nobody asks any more.
        if verdict is not None and progress.path.exists():
            with contextlib.suppress(MoesimError):
                write_json(Path(out) / "failure.json", verdict.plain())
    finally:
        progress.path.unlink(missing_ok=True)
    # Of a rank that nobody started the user knows what it said itself; moesim reads the verdict.
    if MEETING in os.environ:
        return
    if verdict is not None and (verdict.record.pid, verdict.record.state) != (int(agent), State.FAILED):
        _wait_for_end(int(agent))
        print(visible(f"executor: {verdict.message}"), file=sys.stderr, flush=True)


def _wait_for_end(agent: int) -> None:
    """Wait until torchrun has said what it has to say."""
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(agent)], [], [], _REPORT_S)


if __name__ == "__main__":
    main()
