"""Files of torch that are no recording, or worse: damaged, stretched, or with code in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.traces.sglang_files import (
    GOOD,
    ONE,
    per_pass,
    per_token,
    save,
    stat,
    token_record,
)
from traces.base.errors import LoadTableError, MoesimError
from traces.interop import LOAD_IMPORTERS, detect, importer, open_source
from traces.interop.hints import Hints

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.executor


class Evil:
    """Unpickled by anything careless, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.write_text, (self.target, "ran")


@pytest.mark.parametrize("name", ["logical_count", "global_physical_count", "topk_ids_of_layer"])
def test_a_pickle_with_code_does_not_run(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "t.pt", {name: Evil(tmp_path / "ran.txt"), "records": []})
    with pytest.raises(MoesimError, match=r"t\.pt: holds code, .*; nothing of it was run$"):
        open_source(path)
    assert not (tmp_path / "ran.txt").exists()


def test_a_plain_pickle_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    path.write_bytes(pickle.dumps({"logical_count": Evil(tmp_path / "ran.txt")}))
    with pytest.raises(LoadTableError, match=r"is damaged or not a \.pt file of torch\.save"):
        LOAD_IMPORTERS["sglang-stat"].open(path, Hints())
    assert not (tmp_path / "ran.txt").exists()


def test_a_zip_bomb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t/data.pkl", b"logical_count" + bytes(2**20))
    with pytest.raises(LoadTableError, match="which does not compress"):
        open_source(path)


def test_a_file_beyond_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "t.pt", stat([[[1] * 4]]))
    monkeypatch.setattr("traces.base.memory.physical_memory", lambda: 100)
    with pytest.raises(LoadTableError, match="the file with its numbers as int64 needs"):
        open_source(path)


def test_missing_torch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "t.pt", stat([[[1] * 4]]))
    monkeypatch.setattr("traces.interop.torch_file.importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadTableError, match=r"t\.pt: needs torch to be read: pip install torch"):
        open_source(path)


def test_weights_of_a_model_are_no_recording(tmp_path: Path) -> None:
    assert detect(save(tmp_path / "model.pt", {"layer.weight": torch.ones(3)})) is None


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (stat([[[1, 2], [3, 4]]]), "sglang-stat"),
        (per_pass(0, ONE), "sglang-per-pass"),
        (per_token(token_record(**GOOD)), "sglang-per-token"),
    ],
)
def test_cut_anywhere_a_file_is_refused(tmp_path: Path, content: Any, name: str) -> None:
    path = save(tmp_path / "t.pt", content)
    whole = path.read_bytes()
    found = importer(name)
    for length in range(0, len(whole), 61):
        path.write_bytes(whole[:length])
        assert detect(path) is None
        with pytest.raises(MoesimError):
            found.open(path, Hints())
