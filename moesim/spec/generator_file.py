"""A fitted generator as a YAML file, ``moesim.generator/1``; described in ``docs/generator.md``.

Named numbers stand open; the two tables are rows of whole numbers in text: there may be a million of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from moesim.errors import SpecError, TraceError
from moesim.spec.base import Count, Index, Number, Strict, validate
from moesim.spec.model import Model
from moesim.spec.yaml_source import Source, parse_yaml, read_text
from moesim.spec.yaml_text import to_yaml
from traces.base.files import check_format, write_text
from traces.base.parquet import is_parquet
from traces.generator import Generator
from traces.meta import TraceMeta

Floats = npt.NDArray[np.float64]

MAX_BYTES = 32 << 20

_WEIGHT_PARTS = 100  # weights are written in hundredths of their natural logarithm
_SHARE_PARTS = 10_000
_PER_LAYER = ("lasting", "passing", "kept", "sharpness", "gate_sum", "score_level")

_Row = Annotated[str, Field(max_length=1 << 20)]


class _Request(Strict):
    """A recorded request: its category, and the shares of its topics in parts of ten thousand."""

    category: str | None
    topics: _Row


class _File(Strict):
    """What stands in the file; the attributes are those of :class:`traces.generator.Generator`."""

    format: Literal["moesim.generator/1"]
    model: str
    origin: str
    licence: str
    experts: Count
    top_k: Count
    layers: tuple[Index, ...]
    candidates: Index
    scores: Literal["logits", "probabilities"]
    groups: Count
    top_groups: Count
    stay: Number
    recall: Number
    passage_tokens: Number
    lasting: tuple[Number, ...]
    passing: tuple[Number, ...]
    kept: tuple[Number, ...]
    sharpness: tuple[Number, ...]
    gate_sum: tuple[Number, ...]
    score_level: tuple[Number, ...]
    categories: tuple[str, ...]
    requests: Annotated[tuple[_Request, ...], Field(min_length=1)]
    topics: Annotated[tuple[tuple[_Row, ...], ...], Field(min_length=1)]


def write_generator(generator: Generator, path: str | Path) -> None:
    """Write ``generator``; the file gives the same one again, weights rounded to hundredths.

    Raises:
        OutputError: the file cannot be written.
        TraceError: there are so many layers, experts and topics that nothing would read it.
    """
    meta = generator.meta
    names = (*generator.categories, None)
    found = {
        "format": "moesim.generator/1",
        **{key: getattr(meta, key) for key in ("model", "origin", "licence", "experts", "top_k")},
        "layers": list(meta.layers),
        "candidates": meta.candidates,
        "scores": "logits" if generator.score_is_logit else "probabilities",
        "groups": generator.groups,
        "top_groups": generator.top_groups,
        **{key: round(getattr(generator, key), 6) for key in ("stay", "recall", "passage_tokens")},
        **{key: getattr(generator, f"{key}_L").round(6).tolist() for key in _PER_LAYER},
        "categories": list(generator.categories),
        "requests": [
            {"category": names[code], "topics": _row(topics_C * _SHARE_PARTS)}
            for code, topics_C in zip(generator.category_N.tolist(), generator.topics_NC, strict=True)
        ],
        "topics": [
            [_row(row_E * _WEIGHT_PARTS) for row_E in weight_LE] for weight_LE in generator.log_weight_CLE
        ],
    }
    text = to_yaml(found)
    if len(text.encode()) > MAX_BYTES:
        raise TraceError(f"must be at most {MAX_BYTES} bytes; fit fewer topics", file=path, got=len(text))
    write_text(path, text)


def read_generator(path: str | Path) -> Generator:
    """Read what :func:`write_generator` wrote.

    Raises:
        MoesimError: the file is no generator, of an unknown version, or breaks a rule.
    """
    if is_parquet(Path(path)):
        raise SpecError("is Parquet, not a generator; a trace is named with file", file=path)
    source = parse_yaml(read_text(path, MAX_BYTES), str(path))
    if not isinstance(source.value, dict):
        raise source.error("is not a generator: must be a mapping", got=source.value)
    check_format(source.value.get("format"), "generator", 1, file=path, error=SpecError)
    found = validate(_File, source.value, source=source)
    codes = {name: code for code, name in enumerate(found.categories)} | {None: -1}
    for n, request in enumerate(found.requests):
        if request.category not in codes:
            raise source.error("is not one of categories", ("requests", n, "category"), got=request.category)
    topics, layers, experts = len(found.topics), len(found.layers), found.experts
    share_NC = _table(
        [request.topics for request in found.requests], topics, source, lambda n: ("requests", n, "topics")
    )
    for c, rows in enumerate(found.topics):
        if len(rows) != layers:
            raise source.error(f"must have {layers} rows, one for each layer", ("topics", c), got=len(rows))
    weight_RE = _table(
        [row for rows in found.topics for row in rows],
        experts,
        source,
        lambda n: ("topics", n // layers, n % layers),
    )
    total_N = share_NC.sum(axis=1, keepdims=True)
    if (share_NC < 0).any() or (total_N == 0).any():
        raise source.error("shares must not be negative, and some must be above 0", ("requests",))
    plain = ("categories", "stay", "recall", "passage_tokens", "groups", "top_groups")
    parameters: dict[str, Any] = {key: getattr(found, key) for key in plain}
    parameters |= {f"{key}_L": np.array(getattr(found, key), np.float64) for key in _PER_LAYER}
    try:
        return Generator(
            meta=TraceMeta(
                **{
                    key: getattr(found, key)
                    for key in ("model", "experts", "top_k", "layers", "origin", "licence", "candidates")
                }
            ),
            log_weight_CLE=weight_RE.reshape(topics, layers, experts) / _WEIGHT_PARTS,
            topics_NC=share_NC / total_N,
            category_N=np.array([codes[request.category] for request in found.requests], np.int64),
            score_is_logit=found.scores == "logits",
            **parameters,
        )
    except TraceError as error:
        error.file = path
        raise


def shaped(generator: Generator, model: Model) -> Generator:
    """The generator in the shape of a model; unchanged where it was fitted to that model's.

    Raises:
        TraceError: the shape is impossible.
    """
    experts = model.experts
    return generator.scaled(
        model.moe_layers,
        experts.count,
        experts.top_k,
        experts.groups,
        experts.top_groups,
        model=model.name,
    )


def _row(values: Floats) -> str:
    """Whole numbers with blanks between them."""
    return " ".join(map(str, values.round().astype(np.int64).tolist()))


def _table(rows: list[str], width: int, source: Source, at: Any) -> Floats:
    """float64 [rows, width]."""
    table = np.empty((len(rows), width))
    for n, row in enumerate(rows):
        numbers = row.split()
        if len(numbers) != width:
            raise source.error(f"must hold {width} numbers", at(n), got=len(numbers))
        try:
            table[n] = [int(number) for number in numbers]
        except (ValueError, OverflowError) as error:
            raise source.error("must hold whole numbers", at(n), got=row) from error
    return table
