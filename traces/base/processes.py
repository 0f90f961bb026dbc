"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LOOK_S = 0.5


def end_with(parent: int) -> None:
    """Have this process end when ``parent``, which started it, has ended, be it by SIGKILL.

    Linux sees to it; elsewhere a thread looks who the parent is, as often as the interpreter lets it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _end_without(parent)  # it may have ended before
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while True:
        _end_without(parent)
        time.sleep(_LOOK_S)


def _end_without(parent: int) -> None:
    """Whoever has lost its parent is given another."""
    if os.getppid() != parent:
        os._exit(1)
