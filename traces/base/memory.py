"""Refusing what cannot fit into memory before allocating it: a file may claim any size."""

from __future__ import annotations

import os
from pathlib import Path

from traces.base.errors import MoesimError


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(
    needed: int, what: str, *, error: type[MoesimError], file: str | Path | None = None, way_out: str = ""
) -> None:
    """Refuse ``needed`` bytes for ``what`` where the machine has less than twice that.

    Twice, because every use of a trace (sorting, counting, writing) holds something beside it.
    """
    available = physical_memory()
    if needed > available // 2:
        hint = f"; {way_out}" if way_out else ""
        raise error(
            f"{what} needs {_gib(needed)} of memory, this machine has {_gib(available)}{hint}", file=file
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
