"""The clock that the MoE layer is given: it says which phase of the layer runs, and the clock notes when."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Spans(Protocol):
    """Records the phases of a layer, in the order they run; the names are those of ``traces.timeline``."""

    def begin(self, repeat: int, step: int, layer: int) -> None:
        """The phases that follow belong to this layer (its true index in the model)."""

    def phase(
        self,
        name: str,
        *,
        assignments: int = 0,
        unique_tokens: int = 0,
        bytes: int = 0,  # noqa: A002  # the column's name
    ) -> AbstractContextManager[None]:
        """Everything inside the ``with`` is one span.

        Args:
            name: one of ``traces.timeline.PHASES``.
            assignments, unique_tokens: what the span computes or moves.
            bytes: what this rank receives in it, what it relays included.
        """


class NoSpans:
    """A layer that nobody measures."""

    def begin(self, repeat: int, step: int, layer: int) -> None:
        """Nothing to remember."""

    def phase(
        self,
        name: str,
        *,
        assignments: int = 0,
        unique_tokens: int = 0,
        bytes: int = 0,  # noqa: A002  # the column's name
    ) -> AbstractContextManager[None]:
        """A context that does nothing."""
        return nullcontext()
