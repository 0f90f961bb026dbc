"""numpy's ``.npy``: its header, checked, and requests stored as one such file each.

Nothing is unpickled, and an array's claimed size is checked against the file before it is read.
"""

from __future__ import annotations

import io
import math
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from traces.base.arrays import Array
from traces.base.door import first_bytes, open_file
from traces.base.errors import TraceError, reason_of
from traces.base.input_file import files_in, require_files
from traces.interop.hints import Hints
from traces.interop.recording import Part, Recording, from_requests, to_int32
from traces.routing import WINDOW_TOKENS

MAGIC = b"\x93NUMPY"
DAMAGED = (
    *(ValueError, TypeError, OverflowError, SyntaxError, EOFError, MemoryError, RecursionError),
    tokenize.TokenError,
)
"""What numpy raises for a damaged header, and Python's own parser, which numpy lets read it."""

_WINDOW_BYTES = 1 << 26


class NpyRequests:
    """``routed_experts`` of vLLM saved by ``numpy.save``: a file, or a folder with one for each request.

    Each is [tokens, layers, K] with a row for every hidden layer or for each MoE layer; requests come in
    the order of the file names. A file is read in windows, so it may be larger than memory.
    """

    summary: ClassVar[str] = "one .npy of a request, or a folder of them: ids [tokens, layers, K], as by vLLM"

    def detects(self, path: Path) -> bool:
        files = files_in(path, ".npy")
        return bool(files) and first_bytes(files[0], len(MAGIC)) == MAGIC

    def open(self, path: Path, hints: Hints) -> Recording:
        files = require_files(path, ".npy", TraceError)
        parts = (part for request, file in enumerate(files) for part in _windows(request, file))
        return from_requests(parts, hints, file=path, origin="routed experts in .npy")


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, dtype, and size in bytes of the header itself.

    Raises:
        ValueError or another of ``DAMAGED``: it is not such a header.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy version {version}")
    shape, fortran, dtype = readers[version](stream)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype, stream.tell()


def ids_header(
    stream: IO[bytes], size: int, *, file: Path, line: int | None = None
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and header size of expert ids [tokens, layers, K] in C order that fill ``size`` bytes.

    Raises:
        TraceError: damaged, or an array of another kind.
    """
    place: dict[str, Any] = {"file": file, "line": line}
    try:
        shape, fortran, dtype, start = read_header(stream)
    except DAMAGED as fault:
        raise TraceError(f"is damaged or not an .npy file: {reason_of(fault)}", **place) from fault
    if dtype.kind not in "iu" or len(shape) != 3:
        raise TraceError("must be whole numbers [tokens, layers, K]", **place, got=f"{dtype} {shape}")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != size - start:
        raise TraceError(f"is damaged: shape {shape} does not match {size - start} bytes", **place)
    if fortran:
        raise TraceError("must be in C order: save numpy.ascontiguousarray(ids)", **place)
    return shape, dtype, start


def ids_from_bytes(content: bytes, *, file: Path, line: int | None = None) -> Array:
    """Expert ids [tokens, layers, K] of an ``.npy`` file in memory.

    Raises:
        TraceError: as :func:`ids_header`.
    """
    shape, dtype, start = ids_header(io.BytesIO(content), len(content), file=file, line=line)
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def _windows(request: int, file: Path) -> Iterator[Part]:
    """The tokens of one file; each window is mapped on its own, so that memory does not fill with pages."""
    try:
        with open_file(file, "an .npy file", TraceError) as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            shape, dtype, start = ids_header(stream, size, file=file)
            token_bytes = max(1, math.prod(shape[1:]) * dtype.itemsize)
            length = max(1, min(WINDOW_TOKENS, _WINDOW_BYTES // token_bytes))
            if math.prod(shape) == 0:
                raise TraceError("has no tokens", file=file, got=shape)
            for first in range(0, shape[0], length):
                tokens = min(length, shape[0] - first)
                offset = start + first * token_bytes
                ids_TLK = np.memmap(stream, dtype, "r", offset, (tokens, *shape[1:]))
                position_T = to_int32(np.arange(first, first + tokens), "position", file)
                yield Part(request, ids_TLK, position_T, file)
    except (OSError, ValueError) as fault:  # ValueError: the file became shorter meanwhile
        raise TraceError(f"cannot be read: {fault}", file=file) from fault
