"""Folders appear whole or not at all, and what cannot be written is said before anything is simulated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moesim.errors import OutputError
from moesim.output import check_folder, whole_folder
from tests.moesim.command import files


@pytest.mark.parametrize("name", ["new", "new/inside", "there"])
def test_a_whole_folder_appears(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    with whole_folder(tmp_path / name) as part:
        (part / "a").write_text("1")
        assert not (tmp_path / name / "a").exists()
    assert files(tmp_path / name) == {"a": b"1"}
    assert set(files(tmp_path)) == {"there", name, f"{name}/a", name.split("/")[0]}


def test_other_files_of_the_folder_stay_and_equal_names_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "other").write_text("mine")
    with whole_folder(tmp_path) as part:
        (part / "a").write_text("new")
    assert files(tmp_path) == {"a": b"new", "other": b"mine"}


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("name", ["out", "there"])
def test_what_ends_the_block_leaves_nothing(tmp_path: Path, fault: type[BaseException], name: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(fault), whole_folder(tmp_path / name) as part:  # noqa: PT012 - a file before the fault
        (part / "a").write_text("1")
        raise fault
    assert files(tmp_path) == {"there": None}


def test_faults_of_the_disk_name_the_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"out: cannot be written: No space left"),
        whole_folder(tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file: cannot be written"), whole_folder(tmp_path / "file"):
        pass
    with pytest.raises(OutputError, match=r"x: cannot be written"), whole_folder(tmp_path / "file" / "x"):
        pass
    assert files(tmp_path) == {"file": b""}


def test_files_get_the_permissions_of_ordinary_ones(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as part:
        (part / "a").write_text("1")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_is_checked_without_making_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(tmp_path)
    (tmp_path / "file").write_text("")
    for fine in (tmp_path / "new", tmp_path / "new" / "inside"):
        check_folder(fine)
    for name in ("file", "file/out"):
        with pytest.raises(OutputError, match="file: is not a folder"):
            check_folder(tmp_path / name)
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        check_folder(tmp_path / ("x" * 300))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        check_folder(tmp_path / "new")
    assert files(tmp_path) == {"file": b""}


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    """The user's own scenario.yaml must survive ``-o .``; a folder of ours may be written again."""
    (tmp_path / "scenario.yaml").write_text("mine")
    with pytest.raises(OutputError, match="is not empty and holds no run of ours"):
        check_folder(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    check_folder(tmp_path)
