"""``python -m benchmarks.against COMMIT``: this tree beside that commit, in processor time.

Both are measured by turns in processes of their own with the same interpreter, so that a machine that slows
down slows both. The commit stands in a git worktree in a temporary folder meanwhile.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from benchmarks.rows import ROWS
from benchmarks.table import table_of

TURNS = 10

Timer = Callable[[str], float | None]
"""From a row's name to processor seconds; None where the tree lacks the row."""


class BenchError(Exception):
    """A comparison that cannot be made, in one line."""


@contextmanager
def worktree(commit: str, root: Path) -> Iterator[Path]:
    """The files of a commit in a temporary folder, removed at the end, whatever happened.

    Raises:
        BenchError: git knows no such commit, or cannot write it there.
    """
    git = ["git", "-C", str(root), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        try:
            made = subprocess.run(
                [*git, "add", "--quiet", "--detach", str(tree), commit], capture_output=True, text=True
            )
            if made.returncode:
                raise BenchError(made.stderr.strip())
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True)


@contextmanager
def timer(tree: Path) -> Iterator[Timer]:
    """A process that times the rows of a tree by the tree's own ``rows.py``, or by ours if it has none.

    Raises:
        BenchError: the process ended before it answered.
    """
    own = tree / "benchmarks" / "rows.py"
    script = own if own.exists() else Path(__file__).with_name("rows.py")
    child = subprocess.Popen(
        [sys.executable, "-P", str(script)],  # -P: only PYTHONPATH says which tree is imported
        env=os.environ | {"PYTHONPATH": str(tree)},
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def seconds(row: str) -> float | None:
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):  # the empty answer says so
            child.stdin.write(f"{row}\n")
            child.stdin.flush()
        answer = child.stdout.readline().strip()
        if not answer:
            raise BenchError(f"the process that times {tree} ended at the row {row!r}")
        return None if answer == "-" else float(answer)

    with child:
        try:
            yield seconds
        finally:
            child.kill()


def ratio(row: str, this: Timer, base: Timer) -> float | None:
    """The median of ten ratios this / base, each tree first in half of them; None if the base lacks the row.

    Raises:
        BenchError: this tree lacks the row.
    """
    # The first time compiles, and fills caches on disk.
    if this(row) is None:
        raise BenchError(f"this tree lacks the row {row!r}")
    if base(row) is None:
        return None
    ratios = []
    for turn in range(TURNS):
        if turn % 2:
            below, above = base(row), this(row)
        else:
            above, below = this(row), base(row)
        assert above is not None
        assert below is not None
        ratios.append(above / below)
    return statistics.median(ratios)


def compare(commit: str, root: Path, rows: Sequence[str] = tuple(ROWS)) -> Iterator[tuple[str, str]]:
    """Rows of the table, as they are measured: what, and how many times the processor time of the commit.

    Raises:
        BenchError: there is no such commit, or a tree cannot be timed.
    """
    with worktree(commit, root) as tree, timer(root) as this, timer(tree) as base:
        for row in rows:
            found = ratio(row, this, base)
            yield row, "not in the base" if found is None else f"{found:.3f}"


def main(arguments: Sequence[str]) -> int:
    """Print the table.

    Returns:
        2 for a comparison that cannot be made, as the message says.
    """
    if len(arguments) != 1:
        print("usage: python -m benchmarks.against COMMIT", file=sys.stderr)
        return 2
    # So that an end from outside, too, takes the worktree with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    (commit,) = arguments
    rows = []
    try:
        for row in compare(commit, Path(__file__).parents[1]):
            # Each at once, so that a run that is cut short has not been for nothing.
            print(": ".join(row), file=sys.stderr, flush=True)
            rows.append(row)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2
    Console().print(table_of("processor time, median of ten ratios", ("what", f"this / {commit}"), [rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
