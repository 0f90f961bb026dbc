"""Where compiled code is cached: beside the source, else wherever a private folder can be made."""

from __future__ import annotations

import os
from pathlib import Path

import numba
import pytest

from traces.base import jit


@pytest.fixture
def read_only_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As if the package lay in a folder that this user may not write; temporary files go to tmp_path."""
    package = Path(jit.__file__).parent
    real_access = os.access

    def access(path: str | Path, mode: int) -> bool:
        return Path(path) != package and real_access(path, mode)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_writable_install_needs_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert jit._cache_folder() is None


def test_the_users_choice_is_left_alone(read_only_install: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere")
    assert jit._cache_folder() is None


def test_a_read_only_install_caches_in_the_home(read_only_install: Path) -> None:
    assert jit._cache_folder() == str(read_only_install / "home/.cache/moesim")


def test_without_a_home_it_caches_in_a_private_temporary_folder(
    read_only_install: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    folder = jit._cache_folder()
    assert folder == str(read_only_install / f"temporary/moesim-{os.getuid()}")
    assert Path(folder).stat().st_mode & 0o777 == 0o700


def test_a_home_that_is_a_file_is_passed_over(read_only_install: Path) -> None:
    (read_only_install / "home").write_text("")
    assert jit._cache_folder() == str(read_only_install / f"temporary/moesim-{os.getuid()}")


def test_compilation_is_announced_once_and_timed() -> None:
    said: list[str] = []
    with jit.compilation(lambda: said.append("compiling")) as nothing:
        pass
    assert not said
    assert not nothing.done
    with jit.compilation(lambda: said.append("compiling")) as made:
        for function in (lambda x: x + 1, lambda x: x - 1):
            numba.njit(function)(1)
    assert said == ["compiling"]
    assert made.done
    assert made.duration > 0
