"""``moesim trace record``: a text through a tiny model on disk, and what is refused before it loads one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import TraceError
from moesim.studies.record import record_texts
from tests.moesim.command import moesim
from tests.traces.tiny_models import tiny_model
from traces.record import record
from traces.trace_file import read_trace

WORDS = [f"w{index}" for index in range(61)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OLMoE with a tokenizer that knows 61 words, as transformers saves them."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("models") / "tiny-olmoe"
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {word: index for index, word in enumerate(WORDS, 3)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    tiny_model("Olmoe").save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """Texts of 25 and 7 words."""
    (tmp_path / "code.txt").write_text(" ".join(WORDS[:25]))
    (tmp_path / "prose.txt").write_text("\n".join(WORDS[40:47]))
    return [tmp_path / "code.txt", tmp_path / "prose.txt"]


@pytest.mark.executor
def test_texts_become_requests_of_their_category(saved: Path, texts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    record_texts(saved, texts, out, candidates=4, length=10, licence="CC0-1.0")
    trace = read_trace(out)
    assert trace.meta.origin == "recorded from tiny-olmoe on code.txt, prose.txt"
    assert (trace.meta.model, trace.meta.candidates, trace.meta.licence) == ("tiny-olmoe", 4, "CC0-1.0")
    assert trace.categories == ("code.txt", "prose.txt")
    assert np.diff(trace.request_offsets).tolist() == [10, 10, 5, 7]
    assert trace.category_T is not None
    assert trace.category_T.tolist() == [0] * 25 + [1] * 7
    torch: Any = pytest.importorskip("torch")
    model = tiny_model("Olmoe")
    with torch.no_grad(), record(model) as recorder:
        for ids in (range(3, 13), range(13, 23), range(23, 28), range(43, 50)):  # each word is its own id
            model(torch.tensor([[*ids]]))
    assert np.array_equal(trace.ids_TLK, recorder.trace.ids_TLK)


@pytest.mark.executor
def test_the_command_says_what_it_wrote(saved: Path, texts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    text = ("--text", texts[0], "--limit", 12, "--length", 8)
    done = moesim("trace", "record", "--model", saved, *text, "-o", out)
    assert done.code == 0
    assert done.out == f"{out}: 12 tokens of 2 requests, 3 layers, 8 experts, top-2\n"


@pytest.mark.executor
def test_a_model_that_calls_itself_otherwise_is_refused(
    saved: Path, texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other requests than those that were asked for are a trace of something else."""
    kind = type(tiny_model("Olmoe"))
    real: Any = kind.__call__

    def in_halves(self: Any, input_ids: Any, **options: Any) -> None:
        for half in input_ids.chunk(2, dim=1):
            real(self, input_ids=half, **options)

    monkeypatch.setattr(kind, "__call__", in_halves)
    with pytest.raises(TraceError, match=r"must give 4 requests of 32 tokens .* \(got '8 of 32'\)"):
        record_texts(saved, texts, tmp_path / "t.parquet", length=10)
    assert not (tmp_path / "t.parquet").exists()


def test_what_is_no_model_is_refused(texts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="must be a folder with a model of transformers"):
        record_texts(tmp_path, texts, tmp_path / "t.parquet")


@pytest.mark.executor
def test_a_damaged_model_is_refused(texts: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(TraceError, match="cannot be loaded by transformers"):
        record_texts(tmp_path, texts, tmp_path / "t.parquet")


def test_missing_torch_is_said(texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TraceError, match="needs torch to be run: pip install torch"):
        record_texts(tmp_path, texts, tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\xff\xfe", "is not UTF-8 text: byte 0"), (None, "there is no such file")],
)
def test_bad_texts_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(TraceError, match=message):
        record_texts(tmp_path, [text], tmp_path / "t.parquet")


def test_texts_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="--text: must have different names"):
        record_texts(tmp_path, [tmp_path / "a/t.txt", tmp_path / "b/t.txt"], tmp_path / "t.parquet")


@pytest.mark.executor
def test_a_text_without_tokens_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("  \n ")
    with pytest.raises(TraceError, match=r"blank\.txt: has no tokens"):
        record_texts(saved, [tmp_path / "blank.txt"], tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()
