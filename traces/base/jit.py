"""The one place that configures numba, so that its cache also works in a read-only install.

numba caches beside the source or in the user's cache folder, and fails where it can write neither;
then a private folder under the system's temporary directory serves.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import numba
from numba.core import event
from numba.extending import register_jitable

Function = TypeVar("Function", bound=Callable[..., object])


def _cache_folder() -> str | None:
    """A folder for compiled code where numba's own choices are not writable, else None."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return None
    here = Path(__file__).parent
    if os.access(here, os.W_OK):
        return None
    for folder in (*_user_cache(), Path(tempfile.gettempdir()) / f"moesim-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return str(folder)
    return None


def _user_cache() -> list[Path]:
    """The user's own cache folder, where there is a home at all."""
    if os.environ.get("XDG_CACHE_HOME"):
        return [Path(os.environ["XDG_CACHE_HOME"]) / "moesim"]
    try:
        return [Path.home() / ".cache" / "moesim"]
    except RuntimeError:
        return []


_folder = _cache_folder()
if _folder is not None:
    os.environ["NUMBA_CACHE_DIR"] = _folder
    numba.core.config.reload_config()  # type: ignore[no-untyped-call]  # numba types its decorators only


def jit(function: Function) -> Function:
    """Compile ``function`` with a cache on disk; no fastmath and no threads, so results repeat to the bit."""
    return cast(Function, numba.njit(cache=True)(function))


def jit_inside(function: Function) -> Function:
    """As :func:`jit`, for what only compiled code calls; to Python it stays a plain function.

    An entry from Python is half of the compilation of a short function whose argument holds many arrays.
    """
    inside: Function = register_jitable(cache=True, no_cfunc_wrapper=True)(function)
    return inside


def jit_for_threads(function: Function) -> Function:
    """As :func:`jit`, and lets Python's other threads run while it works: what they touch must be apart."""
    return cast(Function, numba.njit(cache=True, nogil=True)(function))


class Compilation(event.TimingListener):
    """Of what is compiled while it listens: ``duration`` in seconds, if there was anything (``done``).

    Args:
        begins: called once, before the first of it.
    """

    def __init__(self, begins: Callable[[], object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # numba types its decorators only
        self._begins: Callable[[], object] | None = begins

    def on_start(self, event: event.Event) -> None:
        """See numba's Listener."""
        if self._begins is not None:
            self._begins()
            self._begins = None
        super().on_start(event)  # type: ignore[no-untyped-call]


@contextmanager
def compilation(begins: Callable[[], object]) -> Iterator[Compilation]:
    """Time what is compiled inside, after ``begins`` has been called once."""
    listener = Compilation(begins)
    with event.install_listener("numba:compile", listener):
        yield listener
