"""One mutation of one reader's files, the same on every run, and what comes of it."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.containers import mutate
from tests.fuzz.readers import READERS
from traces.base.errors import MoesimError

MOST_S, MOST_BYTES = 10, 2 << 30
"""That a mutation may take."""


class _Late(BaseException):
    """No reader may catch it as a fault of the file."""


@dataclass(frozen=True)
class Failure:
    """A mutation that a reader did not answer as it should.

    Attributes:
        kind: what it did instead, and where: equal ones have one cause.
    """

    reader: str
    seed: int
    number: int
    kind: str
    detail: str

    @property
    def command(self) -> str:
        """Repeats it alone."""
        return f'python -m tests.fuzz --reader "{self.reader}" --seed {self.seed} --only {self.number}'


def seeds(name: str, folder: Path) -> Path:
    """The valid files of a reader, in a folder of their own."""
    place = folder / "seeds" / "".join(c if c.isalnum() else "_" for c in name)
    if not place.exists():
        place.mkdir(parents=True)
        READERS[name].write(place)
        READERS[name].read(_copied(place, folder / "check"))
    return place


def run(name: str, seed: int, number: int, folder: Path) -> Failure | None:
    """Mutate one file of ``name`` and read it; None where it is read, or refused in one line.

    Args:
        folder: for the files; those of the last mutation stay in it, under ``case``.
    """
    reader = READERS[name]
    rng = random.Random(f"{seed} {name} {number}")
    case = _copied(seeds(name, folder), folder / "case")
    files = [case / file for file in reader.files] or sorted(
        each for each in case.rglob("*") if each.is_file()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what writes the mutation
        mutate(rng.choice(files), rng)
    peak_before = _peak(reset=True)
    start = time.monotonic()
    kind = detail = ""
    try:
        with _ended_after(MOST_S), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read(case)
    except MoesimError as error:
        str(error)  # made of what the file holds
    except _Late as late:
        kind, detail = f"more than {MOST_S} s, at {_place(late)}", traceback.format_exc()
    except (Exception, SystemExit) as error:
        kind, detail = f"{type(error).__name__} at {_place(error)}", traceback.format_exc()
    took_s, grown = time.monotonic() - start, _peak() - peak_before
    if not kind and grown > MOST_BYTES:
        kind, detail = f"{name}: more than 2 GiB of memory", f"{grown / 2**30:.1f} GiB, {took_s:.1f} s"
    return Failure(name, seed, number, kind, detail) if kind else None


def _copied(source: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(source, to)
    return to


def _place(error: BaseException) -> str:
    """The innermost line of ours that an exception went through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/site-packages/" not in frame.filename
    ]
    ours = [
        frame
        for frame in frames
        if any(f"/{part}/" in frame.filename for part in ("traces", "placement", "moesim", "executor"))
        and "/tests/" not in frame.filename
    ]
    frame = (ours or frames)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak(*, reset: bool = False) -> int:
    """Bytes of memory at most since the last reset; of Linux, 0 elsewhere."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10
