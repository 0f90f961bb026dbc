"""Responses of serving systems with ``routed_experts``: in base64, as nested lists, or with their shape."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from traces.base.arrays import Array
from traces.base.door import first_bytes, open_file, read_bytes, require_file
from traces.base.errors import TraceError, named
from traces.base.memory import require_memory
from traces.interop import npy
from traces.interop.hints import Hints
from traces.interop.recording import Part, Recording, from_requests, to_int32

_WHAT = "responses of a server"
_KEY, _PROMPT = "routed_experts", "prompt_routed_experts"
_MAX_LINE = 1 << 30  # bytes: more than 2 million tokens of 61 layers, top-8, in int32
_EXPANSION, _NESTED = 12, 136  # bytes in memory for one of JSON, and for each list or object, as measured
_DEPTH = 16  # of places where a response may hold its experts
_GLANCE = 1 << 20
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n")


class Responses:
    """JSON lines with a response or a list of them in each, one such value, or base64 alone on each line.

    The experts of a choice may stand anywhere in a response. They are base64 text of an ``.npy`` file (vLLM:
    tokens − 1, hidden layers, K, in uint8 or uint16); base64 of raw int32 of the same axes (SGLang), so that
    the model must be named; lists [tokens][layers][K]; or ``{data, shape, dtype, start}`` with raw base64,
    start being the position of the first row. ``prompt_routed_experts`` come first. Each choice is a request.
    """

    summary: ClassVar[str] = (
        "responses of vLLM, SGLang or Dynamo with routed_experts: JSON, JSON lines, base64 text"
    )

    def detects(self, path: Path) -> bool:
        head = first_bytes(path, _GLANCE)
        if head.lstrip()[:1] in (b"{", b"["):
            return any(f'"{key}"'.encode() in head for key in (_KEY, _PROMPT))
        return len(head) >= 64 and _BASE64.issuperset(head)

    def open(self, path: Path, hints: Hints) -> Recording:
        require_file(path, _WHAT, TraceError)
        head = first_bytes(path, _GLANCE)
        if head.lstrip()[:1] not in (b"{", b"[") and not _BASE64.issuperset(head):
            raise TraceError("is neither JSON nor base64", file=path, line=1)
        return from_requests(_parts(path, hints), hints, file=path, origin="routed experts of a server")


def _parts(path: Path, hints: Hints) -> Iterator[Part]:
    request = 0
    for line, response in _values(path):
        if isinstance(response, str):
            yield _part(request, [(_KEY, response)], None, hints, path, line)
            request += 1
            continue
        choices = list(_choices(response))
        if not choices:
            keys = named(response if isinstance(response, dict) else [type(response).__name__])
            rule = (
                f"lacks {_KEY}, which a server sends when it is started with --enable-return-routed-experts; "
                f"it has {keys}"
            )
            raise TraceError(rule, file=path, line=line)
        for parts, after in choices:
            yield _part(request, parts, after, hints, path, line)
            request += 1


def _choices(response: Any) -> Iterator[tuple[list[tuple[str, Any]], Any]]:
    """Of each choice its parts by name, and the prompt that another choice has and this one goes on from.

    A prompt belongs to all choices of a response, and its tokens were computed once: the first choice has
    them, the others begin where they end.
    """
    waiting: list[Any] = []
    for prompt, output in _hits(response, None, 0):
        if output is None:
            waiting.append(prompt)
            continue
        fresh = prompt is not None and any(prompt is each for each in waiting)
        waiting = [each for each in waiting if each is not prompt]
        yield ([(_PROMPT, prompt), (_KEY, output)], None) if fresh else ([(_KEY, output)], prompt)
    for prompt in waiting:  # nothing was generated
        yield [(_PROMPT, prompt)], None


def _hits(value: Any, prompt: Any, depth: int) -> Iterator[tuple[Any, Any]]:
    """Each prompt's part, then what belongs to it: (prompt, None) and (prompt or None, output)."""
    if depth > _DEPTH:
        return
    if isinstance(value, list):
        if value and isinstance(value[0], (dict, list)):
            for each in value:
                yield from _hits(each, prompt, depth + 1)
        return
    if not isinstance(value, dict):
        return
    if value.get(_PROMPT) is not None:
        prompt = value[_PROMPT]
        yield prompt, None
    if value.get(_KEY) is not None:
        yield prompt, value[_KEY]
    for name, each in value.items():
        if name not in (_KEY, _PROMPT):
            yield from _hits(each, prompt, depth + 1)


def _part(
    request: int, parts: list[tuple[str, Any]], after: Any, hints: Hints, path: Path, line: int
) -> Part:
    """The tokens of one choice."""
    found = [_ids(name, value, hints, path, line) for name, value in parts]
    arrays, start = [ids_TLK for ids_TLK, _ in found], found[0][1]
    if after is not None:
        start = start or len(_ids(_PROMPT, after, hints, path, line)[0])
    if arrays[0].shape[1:] != arrays[-1].shape[1:]:
        rule = f"must have the layers and K of {_KEY}, {arrays[-1].shape[1:]}"
        raise TraceError(rule, file=path, line=line, field=_PROMPT, got=arrays[0].shape[1:])
    ids_TLK = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    position_T = to_int32(np.arange(start, start + len(ids_TLK)), "start", path)
    return Part(request, ids_TLK, position_T, path, line)


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """Each JSON value, or base64 text, of the file, with its line."""
    try:
        with open_file(path, _WHAT, TraceError) as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
                if len(line) == _MAX_LINE:
                    raise TraceError(f"is longer than {_MAX_LINE} bytes", file=path, line=number)
                stripped = line.strip()
                if stripped[:1] not in (b"{", b"["):
                    if stripped:
                        yield number, _ascii(stripped, path, number)
                elif number == 1 and (whole := _pretty_printed(path, stripped)) is not None:
                    yield 1, whole
                    return
                else:
                    yield number, _json(stripped, path, number)
    except OSError as fault:
        raise TraceError(f"cannot be read: {fault.strerror or fault}", file=path) from fault


def _pretty_printed(path: Path, first_line: bytes) -> Any:
    """The JSON value of the whole file where its first line alone is none."""
    try:
        json.loads(first_line)
    except (ValueError, RecursionError):
        if require_file(path, _WHAT, TraceError) > _MAX_LINE:
            raise TraceError("is not JSON", file=path, line=1) from None
        return _json(read_bytes(path, _WHAT, TraceError, times=1), path, 1)
    return None


def _json(text: bytes, path: Path, line: int) -> Any:
    needed = _EXPANSION * len(text) + _NESTED * (text.count(b"[") + text.count(b"{"))
    require_memory(needed, f"JSON of {len(text)} bytes", error=TraceError, file=path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        raise TraceError(f"is not JSON: {fault.msg}", file=path, line=line + fault.lineno - 1) from fault
    except (ValueError, RecursionError) as fault:  # not UTF-8, a number of thousands of digits; too deep
        raise TraceError("is not JSON that can be read", file=path, line=line) from fault


def _ascii(text: bytes, path: Path, line: int) -> str:
    try:
        return text.decode("ascii")
    except UnicodeDecodeError as fault:
        raise TraceError("is neither JSON nor base64", file=path, line=line) from fault


def _ids(name: str, value: Any, hints: Hints, path: Path, line: int) -> tuple[Array, int]:
    """Expert ids [tokens, layers, K], and the position of their first token."""
    place: dict[str, Any] = {"file": path, "line": line, "field": name}
    if isinstance(value, str):
        return _decode(value, hints, path, line), 0
    if isinstance(value, list):
        return _nested(value, place), 0
    if isinstance(value, dict):
        return _shaped(value, place)
    rule = "must be base64 text, lists [tokens][layers][K], or data with its shape and dtype"
    raise TraceError(rule, **place, got=value)


def _nested(value: list[Any], place: dict[str, Any]) -> Array:
    """From lists [tokens][layers][K]."""
    try:
        ids_TLK = np.array(value)
    except (ValueError, OverflowError) as fault:
        raise TraceError("must be lists [tokens][layers][K], all equally long", **place) from fault
    if ids_TLK.ndim != 3 or ids_TLK.dtype.kind not in "iu":
        got = f"{ids_TLK.ndim} axes of {ids_TLK.dtype}"
        raise TraceError("must be lists [tokens][layers][K] of whole numbers", **place, got=got)
    return ids_TLK


def _shaped(value: dict[str, Any], place: dict[str, Any]) -> tuple[Array, int]:
    """From ``{data, shape, dtype, start}``."""
    for key in ("data", "shape", "dtype"):
        if key not in value:
            raise TraceError(f"lacks {key}; it has {named(value)}", **place)
    data, shape, start = value["data"], value["shape"], value.get("start") or 0
    whole = [number for number in (shape if isinstance(shape, list) else []) if type(number) is int]
    if len(whole) != 3 or len(whole) != len(shape) or min(whole) < 0:
        raise TraceError("its shape must be [tokens, layers, K]", **place, got=shape)
    if type(start) is not int or not 0 <= start < 2**31:
        raise TraceError("its start must be a position", **place, got=start)
    try:
        dtype = np.dtype(str(value["dtype"])).newbyteorder("<")
    except (TypeError, ValueError, SyntaxError) as fault:
        raise TraceError("its dtype is none of numpy", **place, got=value["dtype"]) from fault
    if dtype.kind not in "iu":
        raise TraceError("its dtype must be of whole numbers", **place, got=value["dtype"])
    if isinstance(data, list):
        ids_TLK = _nested(data, place)
        if list(ids_TLK.shape) != whole:
            raise TraceError(f"its shape is {whole}, its data are not", **place, got=list(ids_TLK.shape))
        return ids_TLK, start
    content = _from_base64(data, place)
    needed = math.prod(whole) * dtype.itemsize
    if len(content) != needed:
        raise TraceError(f"its shape and dtype need {needed} bytes of data", **place, got=len(content))
    return np.frombuffer(content, dtype).reshape(whole), start


def _from_base64(text: Any, place: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as fault:
        raise TraceError(f"is neither JSON nor base64: {fault}", **place) from fault


def _decode(text: str, hints: Hints, path: Path, line: int) -> Array:
    """Expert ids [tokens, layers, K] of one text."""
    place: dict[str, Any] = {"file": path, "line": line}
    content = _from_base64(text, place)
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
