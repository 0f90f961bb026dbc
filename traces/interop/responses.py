"""Responses of vLLM and SGLang servers with ``routed_experts`` in base64."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from traces.base.arrays import Array
from traces.base.errors import TraceError
from traces.base.input_file import first_bytes, require_file
from traces.interop import npy
from traces.interop.hints import Hints
from traces.interop.recording import Part, Recording, from_requests

_KEY = "routed_experts"
_MAX_LINE = 1 << 30  # bytes: more than 2 million tokens of 61 layers, top-8, in int32
_GLANCE = 1 << 20
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n")


class Responses:
    """JSON lines with a response in each, one JSON response, or the base64 text alone on each line.

    vLLM sends an ``.npy`` file, (tokens − 1, hidden layers, K) in uint8 or uint16; SGLang raw int32 of the
    same axes without a header, so that the model must be named. Where the text begins as an ``.npy`` does,
    it is one. Each text is a request.
    """

    summary: ClassVar[str] = (
        "responses of vLLM or SGLang with routed_experts in base64: JSON, JSON lines, text"
    )

    def detects(self, path: Path) -> bool:
        head = first_bytes(path, _GLANCE)
        if head.lstrip()[:1] == b"{":
            return f'"{_KEY}"'.encode() in head
        return len(head) >= 64 and _BASE64.issuperset(head)

    def open(self, path: Path, hints: Hints) -> Recording:
        require_file(path, "responses of a server", TraceError)
        head = first_bytes(path, _GLANCE)
        if head.lstrip()[:1] != b"{" and not _BASE64.issuperset(head):
            raise TraceError("is neither JSON nor base64", file=path, line=1)
        return from_requests(_parts(path, hints), hints, file=path, origin="routed experts of a server")


def _parts(path: Path, hints: Hints) -> Iterator[Part]:
    for request, (line, text) in enumerate(_texts(path)):
        ids_TLK = _decode(text, hints, path, line)
        yield Part(request, ids_TLK, np.arange(len(ids_TLK), dtype=np.int32), path, line)


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Each base64 text of the file, with its line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
                if len(line) == _MAX_LINE:
                    raise TraceError(f"is longer than {_MAX_LINE} bytes", file=path, line=number)
                stripped = line.strip()
                if stripped[:1] != b"{":
                    if stripped:
                        yield number, _ascii(stripped, path, number)
                    continue
                if number == 1 and (whole := _pretty_printed(path, stripped)) is not None:
                    yield from ((1, text) for text in _find(whole, path, 1))
                    return
                yield from ((number, text) for text in _find(_json(stripped, path, number), path, number))
    except OSError as fault:
        raise TraceError(f"cannot be read: {fault.strerror or fault}", file=path) from fault


def _pretty_printed(path: Path, first_line: bytes) -> Any:
    """The JSON value of the whole file where its first line alone is none."""
    try:
        json.loads(first_line)
    except (ValueError, RecursionError):
        size = path.stat().st_size
        if size > _MAX_LINE:
            raise TraceError("is not JSON", file=path, line=1) from None
        return _json(path.read_bytes(), path, 1)
    return None


def _json(text: bytes, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        raise TraceError(f"is not JSON: {fault.msg}", file=path, line=line + fault.lineno - 1) from fault
    except (ValueError, RecursionError) as fault:  # not UTF-8, a number of thousands of digits; too deep
        raise TraceError("is not JSON that can be read", file=path, line=line) from fault


def _find(response: Any, path: Path, line: int) -> Iterator[str]:
    """The texts of a response: at its top or in its ``choices``, there directly or where SGLang puts them."""
    if not isinstance(response, dict):
        raise TraceError("must be a JSON object", file=path, line=line)
    choices = response.get("choices")
    found = False
    for place in (response, *(choices if isinstance(choices, list) else ())):
        if not isinstance(place, dict):
            continue
        for holder in (place, place.get("meta_info"), place.get("sglext")):
            text = holder.get(_KEY) if isinstance(holder, dict) else None
            if text is None:
                continue
            if not isinstance(text, str):
                raise TraceError("must be base64 text", file=path, line=line, field=_KEY)
            found = True
            yield text
    if not found:
        rule = "is missing: ask the server for it (--enable-return-routed-experts)"
        raise TraceError(rule, file=path, line=line, field=_KEY)


def _ascii(text: bytes, path: Path, line: int) -> str:
    try:
        return text.decode("ascii")
    except UnicodeDecodeError as fault:
        raise TraceError("is neither JSON nor base64", file=path, line=line) from fault


def _decode(text: str, hints: Hints, path: Path, line: int) -> Array:
    """Expert ids [tokens, layers, K] of one text."""
    place: dict[str, Any] = {"file": path, "line": line}
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as fault:
        raise TraceError(f"is neither JSON nor base64: {fault}", **place) from fault
    if content.startswith(npy.MAGIC):
        return npy.ids_from_bytes(content, **place)
    if hints.hidden_layers is None or hints.top_k is None:
        rule = "is raw int32 that does not tell its layers and K: name the model (--model)"
        raise TraceError(rule, **place)
    token_bytes = 4 * hints.hidden_layers * hints.top_k
    if not content or len(content) % token_bytes:
        rule = f"must be int32 for {hints.hidden_layers} layers and {hints.top_k} experts per token"
        raise TraceError(rule, **place, got=f"{len(content)} bytes, {token_bytes} for a token")
    return np.frombuffer(content, "<i4").reshape(-1, hints.hidden_layers, hints.top_k)
