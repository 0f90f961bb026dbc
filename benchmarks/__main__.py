"""``python -m benchmarks``: all timings as one table."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks.counting import counting
from benchmarks.policies import policies
from benchmarks.step import step
from benchmarks.table import table_of
from benchmarks.trace_io import trace_io


def commands() -> list[tuple[str, str]]:
    """Wall time of the two commands that every user starts with, compiled code in the cache."""
    moesim = str(Path(sys.executable).with_name("moesim"))
    rows = []
    for arguments in (["--help"], ["demo"]):
        seconds = []
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                subprocess.run([moesim, *arguments], cwd=folder, stdout=subprocess.DEVNULL, check=True)
                seconds.append(time.perf_counter() - began)
        rows.append((f"moesim {' '.join(arguments)}", f"{min(seconds):.2f} s"))
    return rows


def main() -> None:
    """Print the table."""
    sections = (counting(), policies(), trace_io(), step(), commands())
    Console().print(table_of("moesim benchmarks", ("what", "best"), sections))


if __name__ == "__main__":
    main()
