"""``moesim trace record``: texts through a Hugging Face model, and what its routers chose into a trace."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from moesim.errors import TraceError
from traces.base.door import is_folder, is_regular, names_in, require_file
from traces.base.errors import reason_of
from traces.base.input_file import read_text
from traces.record import record

Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


def record_texts(
    model: Path,
    texts: list[Path],
    out: Path,
    *,
    candidates: int = 0,
    length: int = 1024,
    limit: int | None = None,
    origin: str = "",
    licence: str = "",
    progress: Progress = lambda _what, _total: contextlib.nullcontext(lambda: None),
) -> None:
    """Record the routing of the tokens of ``texts``; nothing is generated.

    Each text is cut into requests of ``length`` tokens; its file name is their category.

    Args:
        model: a folder with a model and its tokenizer as transformers saves them. Code in it does not run.
        candidates: experts to record with their scores for each token; 0 = none.
        limit: tokens to record of each text; None = all.
        progress: enters a block with a name and a number of requests, and is told of each.

    Raises:
        MoesimError: torch or transformers is missing, the model cannot be loaded or has no router that is
            known, or a text cannot be read or has no tokens.
    """
    names = tuple(text.name for text in texts)
    if len(set(names)) != len(names):
        raise TraceError("must have different names, which become categories", field="--text", got=names)
    contents = [read_text(text, "a text", TraceError) for text in texts]
    module, tokenizer = _load(model)
    import torch  # known to be there

    requests = [
        (text.name, ids)
        for text, content in zip(texts, contents, strict=True)
        for ids in _requests(tokenizer, content, length, limit, text)
    ]
    label = model.resolve().name
    options: dict[str, Any] = {"candidates": candidates, "name": label, "categories": names}
    options |= {"origin": origin or f"recorded from {label} on {', '.join(names)}", "licence": licence}
    with (
        torch.inference_mode(),
        progress("recording", len(requests)) as advance,
        record(module, out, **options) as recorder,
    ):
        for name, ids in requests:
            recorder.category = name
            module(input_ids=torch.tensor([ids], device=module.device), use_cache=False)
            advance()


def _load(model: Path) -> tuple[Any, Any]:
    """The model, ready to run on an accelerator where there is one, and its tokenizer."""
    if not is_regular(model / "config.json"):
        raise TraceError("must be a folder with a model of transformers: config.json and weights", file=model)
    for name in names_in(model, TraceError):
        if not is_folder(model / name):
            require_file(model / name, "a part of a model", TraceError, empty=True)
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise TraceError(f"needs {package} to be run: pip install {package}", file=model)
    import torch
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
        module: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model, local_files_only=True, dtype="auto"
        )
    except Exception as fault:  # whatever a damaged or unknown model causes in there
        raise TraceError(f"cannot be loaded by transformers: {reason_of(fault)}", file=model) from fault
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return module.eval().to(device), tokenizer


def _requests(
    tokenizer: Any, content: str, length: int, limit: int | None, text: Path
) -> Iterator[list[int]]:
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"][:limit]
    if not ids:
        raise TraceError("has no tokens", file=text)
    for start in range(0, len(ids), length):
        yield ids[start : start + length]
