"""How far each rank of a node has come: a small file that its ranks share with the process that watches them.

Only the standard library, so that the watching process starts at once and stays small.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

MEETING = "MOESIM_MEETING"
"""In the environment of ranks that ``moesim`` started: a folder of their own."""

_PATIENCE = struct.Struct("<d")
# Of each rank: pid, state, exit code; phases entered, time of the last, repeat, step, layer; phase, cause.
_WHO = struct.Struct("<qii")
_WHERE = struct.Struct("<qqiii")
_PHASE = struct.Struct("<32s")
_CAUSE = struct.Struct("<960s")
_RECORD_BYTES = _WHO.size + _WHERE.size + _PHASE.size + _CAUSE.size


class State(IntEnum):
    """What a rank says of itself."""

    ABSENT = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3
    LOST = 4
    """It failed because others did: it has heard nothing more from them."""


@dataclass(frozen=True)
class Record:
    """A rank as its watcher sees it.

    Attributes:
        count: phases that it has entered so far; all ranks enter the same ones in the same order.
        beat_s: when it entered the last one, on the monotonic clock of this machine.
        repeat, step, layer: of the phase; a negative repeat is a warm-up, -1 else means none.
        cause: why it failed.
    """

    rank: int
    pid: int
    state: State
    exit_code: int
    count: int
    beat_s: float
    repeat: int
    step: int
    layer: int
    phase: str
    cause: str

    @property
    def place(self) -> str:
        """Where it is, in words.

        >>> Record(0, 99, State.RUNNING, 0, 3, 0.5, 1, 4, 11, "experts", "").place
        'experts (layer 11, step 4, repeat 1)'
        """
        if self.step < 0:
            return self.phase
        repeat = f"repeat {self.repeat}" if self.repeat >= 0 else "warm-up"
        layer = f"layer {self.layer}, " if self.layer >= 0 else ""
        return f"{self.phase} ({layer}step {self.step}, {repeat})"


class Progress:
    """The file: a header, and a record for each rank of the node. Every rank writes its own record only."""

    def __init__(self, path: Path, first: int, ranks: int) -> None:
        """Open it for ranks ``first`` to ``first + ranks - 1``; whoever comes first creates it."""
        self.path, self._first, self._ranks = path, first, ranks
        size = _PATIENCE.size + ranks * _RECORD_BYTES
        # It lies in a folder that is open to all: private, and not through a link of somebody else's.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(handle, size)
            self._map = mmap.mmap(handle, size)
        finally:
            os.close(handle)

    @property
    def patience_s(self) -> float:
        """Seconds that a healthy rank may spend in one phase, as far as can be told beforehand."""
        return float(_PATIENCE.unpack_from(self._map)[0])

    @patience_s.setter
    def patience_s(self, seconds: float) -> None:
        _PATIENCE.pack_into(self._map, 0, seconds)

    def read(self) -> list[Record]:
        """All ranks that are there."""
        found = []
        for rank in range(self._first, self._first + self._ranks):
            at = self._at(rank)
            pid, state, exit_code = _WHO.unpack_from(self._map, at)
            count, beat_ns, *where = _WHERE.unpack_from(self._map, at := at + _WHO.size)
            (phase,) = _PHASE.unpack_from(self._map, at := at + _WHERE.size)
            (cause,) = _CAUSE.unpack_from(self._map, at + _PHASE.size)
            if state != State.ABSENT:
                words = (text.rstrip(b"\0").decode(errors="replace") for text in (phase, cause))
                found.append(Record(rank, pid, State(state), exit_code, count, beat_ns / 1e9, *where, *words))
        return found

    def mark(self, rank: int) -> Mark:
        """The record of a rank, which is this process."""
        return Mark(self._map, self._at(rank))

    def _at(self, rank: int) -> int:
        return _PATIENCE.size + (rank - self._first) * _RECORD_BYTES


class Mark:
    """A rank's own record."""

    def __init__(self, shared: mmap.mmap, at: int) -> None:
        self._map, self._at, self._count = shared, at, 0
        self.enter("start")
        self._is(State.RUNNING, 0)

    def enter(self, phase: str, repeat: int = -1, step: int = -1, layer: int = -1) -> None:
        """The rank begins a phase."""
        self._count += 1
        at = self._at + _WHO.size
        self._put(at, _WHERE.pack(self._count, time.monotonic_ns(), repeat, step, layer))
        self._put(at + _WHERE.size, _PHASE.pack(phase.encode()))

    def done(self) -> None:
        """The rank has nothing left to do."""
        self._is(State.DONE, 0)

    def fail(self, cause: str, exit_code: int, *, lost: bool = False) -> None:
        """The rank ends for this cause, or because it ``lost`` the others."""
        at = self._at + _WHO.size + _WHERE.size + _PHASE.size
        self._put(at, _CAUSE.pack(cause.encode(errors="replace")))
        self._is(State.LOST if lost else State.FAILED, exit_code)

    def _is(self, state: State, exit_code: int) -> None:
        self._put(self._at, _WHO.pack(os.getpid(), state, exit_code))

    def _put(self, at: int, packed: bytes) -> None:
        # Not pack_into, which clears its bytes first: a reader would see a time of 0 now and then.
        self._map[at : at + len(packed)] = packed


def progress_file(agent: int, meeting: Path | None = None) -> Path:
    """The file of the ranks of this node that the process ``agent`` started; no other run has the same."""
    if meeting is not None:
        return meeting / "progress"
    return Path(tempfile.gettempdir()) / f"moesim-{agent}-{_started(agent)}.progress"


def _started(pid: int) -> str:
    """When a process started, in ticks since boot, for pids come again: proc_pid_stat(5), field 22."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "0"
    return stat.rpartition(")")[2].split()[19]


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False
