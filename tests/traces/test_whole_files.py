"""Files are written whole or not at all, and onto files alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from traces.base.errors import OutputError
from traces.base.files import whole_file, write_text


def test_what_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_text(file, "old")

    def break_off() -> None:
        with whole_file(file) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_and_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file, link, early = tmp_path / "there" / "a.json", tmp_path / "link.json", tmp_path / "early.json"
    file.write_text("old")
    link.symlink_to(Path("there") / "a.json")
    early.symlink_to(Path("there") / "b.json")
    write_text(link, "new")
    write_text(early, "first")
    assert file.read_text() == "new"
    assert (tmp_path / "there" / "b.json").read_text() == "first"
    assert link.is_symlink()
    assert early.is_symlink()
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize("through", [False, True], ids=["pipe", "link"])
def test_what_is_no_file_is_refused_and_stays(through: bool, tmp_path: Path) -> None:
    """As /dev/null, which whoever may write there would otherwise turn into a file."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with pytest.raises(OutputError, match="is a device or a pipe, a file was expected"):
        write_text(link if through else pipe, "new")
    assert pipe.is_fifo()
    assert link.is_symlink()
    with pytest.raises(OutputError, match="is a folder, a file was expected"):
        write_text(tmp_path, "new")
