"""Solvers that write to the standard output though they are told not to: a result there must stay alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

_STDOUT = 1
_lock = threading.Lock()
_inside = 0
_kept = -1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that a library writes inside the block reaches the standard output; several threads may enter.

    HiGHS 1.16 prints a banner whatever its options say, past Python's own ``sys.stdout``.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _kept
    with _lock:
        if not _inside:
            with contextlib.suppress(OSError):  # it may be closed: then nothing can be written to it
                _flush()
                _kept = os.dup(_STDOUT)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, _STDOUT)
                os.close(nowhere)
        _inside += 1


def _leave() -> None:
    global _inside, _kept
    with _lock:
        _inside -= 1
        if not _inside and _kept >= 0:
            _flush()
            os.dup2(_kept, _STDOUT)
            os.close(_kept)
            _kept = -1


def _flush() -> None:
    """What C's own buffers hold goes where it was meant to go."""
    ctypes.CDLL(None).fflush(None)
