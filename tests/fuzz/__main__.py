"""``python -m tests.fuzz``: mutated files for every reader, of which only MoesimErrors may come.

A worker for each core, with limits on memory and time; what ends a worker itself counts as well. Of each kind
of failure the first is printed, with the command that repeats it alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.fuzz.mutation import MOST_S, Failure, run, seeds
from tests.fuzz.readers import READERS

_MEMORY = (
    3 << 30
)  # beside what a worker has before: more than a mutation may take, less than hurts the machine
Case = tuple[str, int]


def cases(names: list[str], mutations: int) -> list[Case]:
    """The mutations of all readers in turn, by their shares: name and number."""
    shares = sum(READERS[name].share for name in names)
    counts = {name: max(1, round(mutations * READERS[name].share / shares)) for name in names}
    return sorted(
        ((name, number) for name, count in counts.items() for number in range(count)),
        key=lambda case: (case[1] / counts[case[0]], case[0]),
    )


def _work(todo: list[Case], seed: int, folder: Path, answers: Connection) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for at, (name, number) in enumerate(todo):
        answers.send((at, run(name, seed, number, folder)))


@dataclass
class _Worker:
    """A process and what it still has to do; it is started anew after a mutation that ended it."""

    todo: list[Case]
    seed: int
    folder: Path
    done: int = 0

    def start(self) -> None:
        self.answers, theirs = multiprocessing.Pipe(duplex=False)
        context: Any = multiprocessing.get_context("fork")
        self.process = context.Process(
            target=_work, args=(self.todo[self.done :], self.seed, self.folder, theirs)
        )
        self.base, self.heard = self.done, time.monotonic()
        self.process.start()
        theirs.close()

    def answer(self) -> Failure | None:
        """The next answer; a failure made here where the process ended."""
        try:
            at, failure = self.answers.recv()
            self.done, self.heard = self.base + at + 1, time.monotonic()
            found: Failure | None = failure
            return found
        except EOFError:
            self.process.join()
            return self._lost(f"ends the process, exit code {self.process.exitcode}")

    def late(self) -> Failure | None:
        """A failure where it has not answered for far too long, in code that no signal reaches."""
        if time.monotonic() - self.heard < 3 * MOST_S:
            return None
        self.process.kill()
        self.process.join()
        return self._lost("does not end")

    def _lost(self, kind: str) -> Failure:
        name, number = self.todo[self.done]
        self.done += 1
        if self.done < len(self.todo):
            self.start()
        return Failure(name, self.seed, number, f"{name}: {kind}", "")


def fuzz(todo: list[Case], seed: int, jobs: int) -> list[Failure]:
    """All failures; progress goes to stderr."""
    failures: list[Failure] = []
    with tempfile.TemporaryDirectory(prefix="moesim-fuzz-") as place:
        for name in dict(todo):
            seeds(name, Path(place))
        workers = []
        for job in range(min(jobs, len(todo))):
            folder = Path(place) / str(job)
            folder.mkdir()
            (folder / "seeds").symlink_to(Path(place) / "seeds")
            workers.append(_Worker(todo[job::jobs], seed, folder))
            workers[-1].start()
        begun, shown = time.monotonic(), 0.0
        while busy := [worker for worker in workers if worker.done < len(worker.todo)]:
            ready = wait([worker.answers for worker in busy], timeout=1.0)
            found = [w.answer() for w in busy if w.answers in ready] + [
                w.late() for w in busy if w.answers not in ready
            ]
            failures += [failure for failure in found if failure is not None]
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                done = sum(worker.done for worker in workers)
                print(
                    f"{done:,} of {len(todo):,} in {shown - begun:.0f} s, {len(failures)} failures",
                    file=sys.stderr,
                )
    return failures


def main() -> None:
    """Exit code 1 where a reader failed."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument(
        "--mutations", type=int, default=20_000, metavar="N", help="of all readers (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument(
        "--reader", action="append", metavar="NAME", help=f"may be repeated: {', '.join(READERS)}"
    )
    parser.add_argument("--only", type=int, metavar="I", help="this mutation alone; its files are kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    given = parser.parse_args()
    names = given.reader or list(READERS)
    if unknown := [name for name in names if name not in READERS]:
        parser.error(f"no such reader: {unknown[0]}; known: {', '.join(READERS)}")
    if given.only is not None:
        folder = Path(tempfile.mkdtemp(prefix="moesim-fuzz-"))
        failure = run(names[0], given.seed, given.only, folder)
        print(
            f"{failure.detail}\n{failure.kind}" if failure else "as it should be",
            f"\n{folder / 'case'}",
            sep="",
        )
        sys.exit(failure is not None)
    failures = fuzz(cases(names, given.mutations), given.seed, given.jobs)
    counts = Counter(failure.kind for failure in failures)
    first = {failure.kind: failure for failure in reversed(failures)}
    for kind, count in counts.most_common():
        said = first[kind].detail.strip().splitlines()[-1:]
        print(f"{count:6} {kind}", first[kind].command, *said, sep="\n       ")
    print(f"{len(failures)} failures of {len(counts)} kinds")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
