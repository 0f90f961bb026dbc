"""Temporary files and folders: gone with their block, and after a crash with the next write beside them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from traces.base.files import write_text
from traces.base.parts import clear, part_of, scratch_folder

HOLDS = """
import sys, time
from pathlib import Path
from traces.base.parts import part_of
with part_of("a.json", Path(sys.argv[1]), folder=sys.argv[2] == "folder") as part:
    if part.is_dir():
        (part / "inside").write_text("half")
    print(part.name, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path, kind: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path), kind], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        # As long as its process lives, it is in use.
        write_text(tmp_path / "b.json", "1")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "b.json"])
        process.kill()
        process.wait()
        assert (tmp_path / name).exists()
        write_text(tmp_path / "b.json", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_only_ours_are_removed(tmp_path: Path) -> None:
    names = [".a.part", ".a.moesim-abcd1234", "a.moesim-abcd1234.part", ".a.abcd1234.part"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "mine").touch()
    (tmp_path / ".link.moesim-abcd1234.part").symlink_to(tmp_path / "mine")
    (tmp_path / ".left.moesim-abcd1234.part").touch()
    clear(tmp_path)
    expected = [*names, "mine", ".link.moesim-abcd1234.part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)


def test_a_part_that_is_cleared_before_it_is_locked_is_made_anew(tmp_path: Path) -> None:
    real = fcntl.flock
    cleared: list[str] = []

    def flock(handle: int, how: int) -> None:
        if not cleared:
            (cleared_file,) = tmp_path.iterdir()
            cleared.append(cleared_file.name)
            cleared_file.unlink()
        real(handle, how)

    with mock.patch("fcntl.flock", flock), part_of("a", tmp_path) as part:
        assert part.exists()
        assert part.name not in cleared
    assert list(tmp_path.iterdir()) == []


def test_without_locks_nothing_is_taken_for_left_over(tmp_path: Path) -> None:
    (tmp_path / ".a.moesim-abcd1234.part").touch()
    with (
        mock.patch("fcntl.flock", side_effect=OSError(95, "Operation not supported")),
        part_of("a", tmp_path) as part,
    ):
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / ".a.moesim-abcd1234.part", part])


def test_a_scratch_folder_is_private(tmp_path: Path) -> None:
    with mock.patch("tempfile.gettempdir", return_value=str(tmp_path)), scratch_folder() as own:
        assert own.parent == tmp_path
        assert own.stat().st_mode & 0o777 == 0o700
        (own / "a").write_text("1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_listed_may_be_written(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o300)
    write_text(closed / "a.json", "1")
    assert (closed / "a.json").read_text() == "1"
