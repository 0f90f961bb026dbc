"""Refusing what cannot fit into memory before allocating it: a file may claim any size."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from traces.base.errors import MoesimError

_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory() -> int:
    """Bytes that this process may use: a container or ``ulimit -v`` may allow less than the machine has."""
    limits = [physical_memory()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    for name in _CGROUP:
        with contextlib.suppress(OSError, ValueError):  # not there; "max"
            limits.append(int(Path(name).read_text("ascii")))
    return min(limits)


def require_memory(
    needed: int, what: str, *, error: type[MoesimError], file: str | Path | None = None, way_out: str = ""
) -> None:
    """Refuse ``needed`` bytes for ``what`` where less than twice that may be used.

    Twice, because every use of a trace (sorting, counting, writing) holds something beside it.
    """
    available = usable_memory()
    if needed > available // 2:
        hint = f"; {way_out}" if way_out else ""
        raise error(
            f"{what} needs {_gib(needed)} of memory, this machine has {_gib(available)}{hint}", file=file
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
