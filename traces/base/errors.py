"""The root of every error a user can cause, on the lowest floor so that all floors can raise it.

The whole tree is drawn in :mod:`moesim.errors`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

# The one singleton that is still itself after a journey to a worker process and is never a wrong value.
_ABSENT: Any = ...


class MoesimError(Exception):
    """A fault that is explained in one line: place, rule, and the value that broke it.

    The message reads ``FILE:LINE: FIELD: RULE (got VALUE)``; parts that are unknown are left out.
    ``exit_code`` is what the command line exits with: 2 where the user's input is at fault.

    >>> str(MoesimError("must be at least 1", file="s.yaml", line=14, field="cluster.nodes", got=0))
    's.yaml:14: cluster.nodes: must be at least 1 (got 0)'
    """

    exit_code = 2

    def __init__(
        self,
        rule: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        got: Any = _ABSENT,
    ) -> None:
        self.rule, self.file, self.line, self.field, self.got = rule, file, line, field, got
        super().__init__(rule)

    def __str__(self) -> str:
        place = "" if self.file is None else str(self.file)
        if place and self.line is not None:
            place += f":{self.line}"
        value = "" if self.got is _ABSENT else f" (got {_short(self.got)})"
        line = ": ".join(part for part in (place, self.field, self.rule) if part) + value
        # A name may hold line breaks or terminal codes; the message stays one harmless line.
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


class TraceError(MoesimError):
    """A routing trace that breaks the format, or does not fit what it is asked for."""


class LoadTableError(MoesimError):
    """A table of expert loads that breaks its format."""


class TimelineError(MoesimError):
    """A timeline or work file that breaks its format."""


class OutputError(MoesimError):
    """A result that cannot be written where it was asked for."""


def reason_of(fault: Exception) -> str:
    """What a library says of a fault, on one short line; its class where it says nothing."""
    return (str(fault).splitlines() or [type(fault).__name__])[0][:200]


def named(names: Iterable[object], most: int = 12) -> str:
    """Names that a file has, for the message that misses another one.

    >>> named(["layer_id", "expert_ids"]), named([])
    ('layer_id, expert_ids', 'none')
    """
    listed = [ascii(str(name))[1:-1][:60] for name in names]
    more = [f"… ({len(listed)} in all)"] if len(listed) > most else []
    return ", ".join(listed[:most] + more) or "none"


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value) if isinstance(value, str) else " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
