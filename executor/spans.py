"""The clock that the MoE layer is given: it says which phase of the layer runs, and the clock notes when."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from traces.timeline import PHASES

COLUMNS: Final = (
    "repeat",
    "step",
    "layer",
    "phase",
    "start_ns",
    "end_ns",
    "assignments",
    "unique_tokens",
    "bytes",
)
"""Of a table of spans, int64 [N, 9]; the phase by its place in ``traces.timeline.PHASES``."""

Enter = Callable[[str, int, int, int], None]
"""Told of every phase that begins: its name, repeat, step, layer."""


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


class _Recorder:
    """What the two clocks share: a row of ``COLUMNS`` for each phase. It is its own context manager.

    Phases of a warm-up, whose repeat is negative, are not kept.
    """

    def __init__(self, enter: Enter) -> None:
        self._enter = enter
        self._where = (0, 0, 0)
        self._name = ""
        self._counts = (0, 0, 0)

    def begin(self, repeat: int, step: int, layer: int) -> None:
        """See :class:`Spans`."""
        self._where = (repeat, step, layer)

    def phase(self, name: str) -> Any:
        """See :class:`Spans`."""
        self._name = name
        return self

    def count(self, *, assignments: int, unique_tokens: int, bytes: int) -> None:  # noqa: A002  # the column
        """See :class:`Spans`."""
        self._counts = (assignments, unique_tokens, bytes)

    def _row(self, start: Any, end: Any) -> tuple[Any, ...]:
        return (*self._where, PHASES.index(self._name), start, end, *self._counts)


class HostSpans(_Recorder):
    """The host's clock, for layers whose every operation has ended when it returns."""

    def __init__(self, enter: Enter) -> None:
        super().__init__(enter)
        self._rows: list[tuple[int, ...]] = []
        self._start_ns = 0

    def __enter__(self) -> None:
        self._enter(self._name, *self._where)
        self._start_ns = time.perf_counter_ns()

    def __exit__(self, fault: object, *_: object) -> None:
        end_ns = time.perf_counter_ns()
        if fault is None and self._where[0] >= 0:
            self._rows.append(self._row(self._start_ns, end_ns))

    def table(self) -> NDArray[np.int64]:
        """All spans in the order they ran, as ``COLUMNS`` says."""
        return np.array(self._rows, np.int64).reshape(-1, len(COLUMNS))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class CudaSpans(_Recorder):
    """Events in the stream of a GPU, brought onto the host's clock once for each step.

    The GPU is idle when a step begins, so that an event recorded there happens at once. Events resolve about
    half a microsecond (CUDA Runtime API, cudaEventElapsedTime).
    """

    def __init__(self, enter: Enter, device: torch.device) -> None:
        super().__init__(enter)
        self._device = device
        self._step = (-1, -1)
        self._anchor, self._anchor_ns = _event(), 0
        self._start = self._anchor
        self._open: list[tuple[Any, ...]] = []
        self._rows: list[tuple[int, ...]] = []

    def begin(self, repeat: int, step: int, layer: int) -> None:
        """See :class:`Spans`."""
        super().begin(repeat, step, layer)
        if (repeat, step) != self._step:
            self._settle()
            self._step = (repeat, step)
            self._anchor = _event()
            self._anchor_ns = time.perf_counter_ns()
            self._anchor.record()

    def __enter__(self) -> None:
        self._enter(self._name, *self._where)
        self._start = _event()
        self._start.record()

    def __exit__(self, fault: object, *_: object) -> None:
        if fault is None and self._where[0] >= 0:
            end = _event()
            end.record()
            self._open.append(self._row(self._start, end))

    def table(self) -> NDArray[np.int64]:
        """All spans in the order they ran, as ``COLUMNS`` says."""
        self._settle()
        return np.array(self._rows, np.int64).reshape(-1, len(COLUMNS))

    def _settle(self) -> None:
        """Turn the events of the step that has ended into times."""
        torch.cuda.synchronize(self._device)
        for *where, start, end, assignments, unique_tokens, moved in self._open:
            times = (
                self._anchor_ns + round(self._anchor.elapsed_time(event) * 1e6) for event in (start, end)
            )
            self._rows.append((*where, *times, assignments, unique_tokens, moved))
        self._open.clear()


def clock_on(device: torch.device, enter: Enter) -> HostSpans | CudaSpans:
    """The clock for layers on this device."""
    return CudaSpans(enter, device) if device.type == "cuda" else HostSpans(enter)
