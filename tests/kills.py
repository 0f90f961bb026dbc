"""``python -m tests.kills --kills 100``: a what-if that is killed again and again, and always goes on.

Signals (SIGKILL, SIGTERM, SIGINT) arrive at random moments of a sweep that writes its points. After each
one nothing may run on, all points that were there must still be there, untouched and whole; the sweep that
ends at last must be the one that was never killed, without a temporary file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.processes import session

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_LEAVE_S = 20.0
"""How long what was killed may take to be gone."""
_LIMIT_S = 300.0
_CODE = """
import faulthandler, signal
faulthandler.register(signal.SIGUSR1)
from moesim.commands.cli import main
main()
"""


@dataclass
class Sweep:
    """A what-if of so many points in a folder."""

    folder: Path
    points: int
    jobs: int
    out: str = "out"
    codes: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        write_scenario(self.folder, tiny_scenario(), "s.yaml")
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(exist_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        """A process in a session of its own, in which its workers are, too."""
        root = str(Path(__file__).parents[1])
        vary = f"seed={list(range(1, self.points + 1))}"
        options = ["--vary", vary, "--jobs", str(self.jobs), "-o", self.out, "--json"]
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-c", _CODE, "whatif", "s.yaml", *options],
                cwd=self.folder,
                env=os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": root},
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )

    def finish(self) -> dict[str, Any]:
        """What it says when nobody interferes, but for how long it took."""
        process = self.start()
        try:
            assert process.wait(_LIMIT_S) == 0, (self.folder / "said").read_text()
        finally:
            process.kill()
        found: dict[str, Any] = json.loads((self.folder / self.out / "whatif.json").read_text())
        found["baseline"]["provenance"].pop("wall_s")
        return found

    def kill(self, number: int, moment: float, chance: random.Random) -> None:
        """End it with a signal when some more points are there, or so many seconds after its start.

        Args:
            moment: from 0 to 1; the lower half are seconds, up to four, which it mostly takes to start.
        """
        before = self.kept()
        process = self.start()
        more = len(before) + chance.randrange(1, 8)
        until = time.monotonic() + (moment * 8 if moment < 0.5 else _LIMIT_S)
        while process.poll() is None and time.monotonic() < until:
            if moment >= 0.5 and len(self.kept()) >= more:
                time.sleep(chance.random() * 0.03)
                break
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            self.codes[self._end_of(process, number)] += 1
            self._all_gone(process.pid)
        finally:
            process.kill()
        after = self.kept()
        lost = [name for name, stamp in before.items() if after.get(name) != stamp]
        assert not lost, f"points lost or simulated again: {lost}"
        for name in after:
            json.loads((self.folder / self.out / "points" / name).read_text())

    def kept(self) -> dict[str, int]:
        """The points, each with the moment at which it was written."""
        found = {}
        for file in (self.folder / self.out / "points").glob("[!.]*.json"):
            found[file.name] = file.stat().st_mtime_ns
        return found

    def left_over(self) -> list[str]:
        """Temporary files of any kind."""
        return [str(path) for path in (*self.folder.rglob(".*"), *self.temporary.iterdir())]

    def _end_of(self, process: subprocess.Popen[bytes], number: int) -> int:
        """The exit code; where it does not end, what all its threads do is told."""
        try:
            code = process.wait(_LEAVE_S)
            if code not in (0, -number, 128 + number):
                print(f"exit code {code} after {number}: {(self.folder / 'said').read_text()}", flush=True)
            return code
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGUSR1)
            time.sleep(1)
            raise AssertionError(f"goes on after {number}:\n{(self.folder / 'said').read_text()}") from None

    def _all_gone(self, pid: int) -> None:
        until = time.monotonic() + _LEAVE_S
        while left := session(pid):
            assert time.monotonic() < until, f"processes left: {left}"
            time.sleep(0.05)


def hurt(folder: Path, kills: int, *, jobs: int, points: int, seed: int) -> Counter[int]:
    """Kill a sweep so often; begin anew where it ends meanwhile. Returns how often each exit code was seen.

    Raises:
        AssertionError: a point is lost or simulated twice, a process or a temporary file is left, or the
            sweep differs from one that was not killed.
    """
    chance = random.Random(seed)
    whole = Sweep(folder, points, jobs=1, out="whole").finish()
    sweep = Sweep(folder, points, jobs)
    for kill in range(kills):
        sweep.kill(SIGNALS[kill % len(SIGNALS)], chance.random(), chance)
        if (folder / sweep.out / "whatif.json").exists():
            assert sweep.finish() == whole
            sweep.out = f"out-{kill}"
    stamps = sweep.kept()
    assert sweep.finish() == whole
    assert stamps.items() <= sweep.kept().items(), "points are simulated again"
    assert not sweep.left_over()
    return sweep.codes


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    # A shell starts background jobs with Ctrl-C ignored, and the sweeps would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seed = random.randrange(1 << 31) if given.seed is None else given.seed
    print(f"seed {seed}: {given.kills} kills with --jobs {given.jobs}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        codes = hurt(Path(folder), given.kills, jobs=given.jobs, points=given.points, seed=seed)
    print("nothing lost, nothing left; exit codes:", dict(codes))


if __name__ == "__main__":
    main()
