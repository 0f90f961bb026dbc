"""The clock that the MoE layer is given: it says which phase of the layer runs, and the clock notes when."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Spans(Protocol):
    """Records the phases of a layer, in the order they run; the names are those of ``traces.timeline``."""

    def begin(self, repeat: int, step: int, layer: int) -> None:
        """The phases that follow belong to this layer (its true index in the model)."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Everything inside the ``with`` is one span; phases follow each other and are never nested."""

    def count(self, *, assignments: int, unique_tokens: int, bytes: int) -> None:  # noqa: A002  # the column
        """What the phase that is open handles; known only inside it, once the counts have been exchanged.

        Args:
            assignments, unique_tokens: what this rank computes or moves.
            bytes: what it receives from other ranks, what it relays included.
        """


class NoSpans:
    """A layer that nobody measures."""

    def begin(self, repeat: int, step: int, layer: int) -> None:
        """Nothing to remember."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A context that does nothing."""
        return nullcontext()

    def count(self, *, assignments: int, unique_tokens: int, bytes: int) -> None:  # noqa: A002  # the column
        """Nothing to remember."""
