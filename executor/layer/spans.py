"""The clock that the MoE layer is given: it says which phase of the layer runs, and the clock notes when."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from traces.timeline import PHASES

COLUMNS: Final = (
    "repeat",
    "step",
    "micro_batch",
    "layer",
    "phase",
    "start_ns",
    "end_ns",
    "assignments",
    "unique_tokens",
    "bytes",
)
"""Of a table of spans, int64 [N, 10]; the phase by its place in ``traces.timeline.PHASES``."""

Enter = Callable[[str, int, int, int], None]
"""Told of every phase that begins: its name, repeat, step, layer."""


class Where(NamedTuple):
    """The layer that a phase belongs to, by its true index in the model; a warm-up's repeat is negative."""

    repeat: int = 0
    step: int = 0
    micro_batch: int = 0
    layer: int = 0


NOWHERE: Final = Where()


class Span(Protocol):
    """One phase; everything inside the ``with`` is timed, in the thread and the stream that enter it."""

    def __enter__(self) -> Self:
        """The phase begins."""

    def __exit__(self, fault: object, *_: object) -> None:
        """The phase ends."""

    def count(self, *, assignments: int, unique_tokens: int, bytes: int) -> None:  # noqa: A002  # the column
        """What the phase handles; known only inside it, once the counts have been exchanged.

        Args:
            assignments, unique_tokens: what this rank computes or moves.
            bytes: what it receives from other ranks, what it relays included.
        """

    def announce(self) -> None:
        """This rank goes on when the phase has ended, and not before."""


class Spans(Protocol):
    """Makes the spans of a rank; the names of phases are those of ``traces.timeline``."""

    def phase(self, name: str, where: Where) -> Span:
        """A span that is about to begin; announced."""


class NoSpan:
    """A phase that nobody measures."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, fault: object, *_: object) -> None:
        pass

    def count(self, *, assignments: int, unique_tokens: int, bytes: int) -> None:  # noqa: A002  # the column
        """Nothing to remember."""

    def announce(self) -> None:
        """Nobody to tell."""


class NoSpans:
    """A layer that nobody measures."""

    def phase(self, name: str, where: Where) -> Span:
        """A context that does nothing."""
        return NoSpan()


class _Span:
    """What the spans of the two clocks share: a row of ``COLUMNS``, which a warm-up does not keep."""

    def __init__(self, enter: Enter, rows: list[tuple[Any, ...]], name: str, where: Where) -> None:
        self._enter, self._rows, self._name, self._where = enter, rows, name, where
        self._counts = (0, 0, 0)
        self.announce()

    def count(self, *, assignments: int, unique_tokens: int, bytes: int) -> None:  # noqa: A002  # the column
        """See :class:`Span`."""
        self._counts = (assignments, unique_tokens, bytes)

    def announce(self) -> None:
        """See :class:`Span`."""
        where = self._where
        self._enter(self._name, where.repeat, where.step, where.layer)

    def _keep(self, fault: object, start: Any, end: Any) -> None:
        if fault is None and self._where.repeat >= 0:
            self._rows.append((*self._where, PHASES.index(self._name), start, end, *self._counts))


class _HostSpan(_Span):
    def __enter__(self) -> Self:
        self._start_ns = time.perf_counter_ns()
        return self

    def __exit__(self, fault: object, *_: object) -> None:
        self._keep(fault, self._start_ns, time.perf_counter_ns())


class HostSpans:
    """The host's clock, for layers whose every operation has ended when it returns."""

    def __init__(self, enter: Enter) -> None:
        self._enter = enter
        self._rows: list[tuple[Any, ...]] = []

    def phase(self, name: str, where: Where) -> Span:
        """See :class:`Spans`."""
        return _HostSpan(self._enter, self._rows, name, where)

    def table(self) -> NDArray[np.int64]:
        """All spans by where they belong, as ``COLUMNS`` says."""
        return _table(self._rows)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class _CudaSpan(_Span):
    def __enter__(self) -> Self:
        self._start = _event()
        self._start.record()
        return self

    def __exit__(self, fault: object, *_: object) -> None:
        end = _event()
        end.record()
        self._keep(fault, self._start, end)


class CudaSpans:
    """Events in the streams of a GPU, brought onto the host's clock once for each step.

    The GPU is idle when a step begins, so that an event recorded there happens at once. Events resolve about
    half a microsecond (CUDA Runtime API, cudaEventElapsedTime).
    """

    def __init__(self, enter: Enter, device: torch.device) -> None:
        self._enter = enter
        self._device = device
        self._step = (-1, -1)
        self._anchor, self._anchor_ns = _event(), 0
        self._open: list[tuple[Any, ...]] = []
        self._rows: list[tuple[Any, ...]] = []

    def phase(self, name: str, where: Where) -> Span:
        """See :class:`Spans`."""
        step = (where.repeat, where.step)
        if step != self._step:
            self._settle()
            self._step = step
            self._anchor = _event()
            self._anchor_ns = time.perf_counter_ns()
            self._anchor.record()
        return _CudaSpan(self._enter, self._open, name, where)

    def table(self) -> NDArray[np.int64]:
        """All spans by where they belong, as ``COLUMNS`` says."""
        self._settle()
        return _table(self._rows)

    def _settle(self) -> None:
        """Turn the events of the step that has ended into times."""
        torch.cuda.synchronize(self._device)
        for *where, start, end, assignments, unique_tokens, moved in self._open:
            times = (
                self._anchor_ns + round(self._anchor.elapsed_time(event) * 1e6) for event in (start, end)
            )
            self._rows.append((*where, *times, assignments, unique_tokens, moved))
        self._open.clear()


def _table(rows: list[tuple[Any, ...]]) -> NDArray[np.int64]:
    """By repeat, step, micro-batch, layer and phase: what runs on two lanes ends in any order."""
    ordered = sorted(rows, key=lambda row: row[: COLUMNS.index("start_ns")])
    return np.array(ordered, np.int64).reshape(-1, len(COLUMNS))


def clock_on(device: torch.device, enter: Enter) -> HostSpans | CudaSpans:
    """The clock for layers on this device."""
    return CudaSpans(enter, device) if device.type == "cuda" else HostSpans(enter)
