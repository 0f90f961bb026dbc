"""Records that one process writes while another reads them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from executor.ranks.progress import Progress

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from pathlib import Path
from executor.ranks.progress import Progress
mark = Progress(Path(sys.argv[1]), 0, 1).mark(0)
print("ready", flush=True)
for number in range(200_000):
    mark.enter("experts", number, number, number)
mark.done()
"""

pytestmark = pytest.mark.executor


def test_no_record_is_ever_seen_half_written(tmp_path: Path) -> None:
    """A watcher that saw a time of 0 would take the rank to hang."""
    file = tmp_path / "progress"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        progress, beats, counts, looks = Progress(file, 0, 1), [0.0], [0], 0
        while writer.poll() is None:
            (record,) = progress.read()
            looks += 1
            assert record.pid == writer.pid
            assert record.phase in ("start", "experts")
            beats.append(record.beat_s)
            counts.append(record.count)
    assert looks > 1000
    assert min(beats[1:]) > 0
    # Times may lag behind by a moment, but never by the seconds after which a rank seems to hang.
    assert all(later > earlier - 5.0 for earlier, later in itertools.pairwise(beats))
    assert max(counts) > 1
