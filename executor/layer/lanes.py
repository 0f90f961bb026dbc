"""Where collectives run: in line with the kernels of a rank, or on a lane of their own beside them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import zip_longest
from typing import Protocol, TypeVar

import torch

from executor.layer.spans import Span

T = TypeVar("T")

Stages = Generator[None, None, T]
"""What a micro-batch computes between two collectives, then a ``yield``, and so on; at last its result."""


class Lane(Protocol):
    """Runs collectives one after the other, in the order in which they were started."""

    def start(self, span: Span, work: Callable[[Span], T]) -> Callable[[], T]:
        """Run ``work`` inside its span, after all that the caller has computed.

        Returns:
            What waits for it, and returns its result: what the caller computes from then on comes after it.
        """


class InLine:
    """No lane of its own: a collective has ended when it has been started."""

    def start(self, span: Span, work: Callable[[Span], T]) -> Callable[[], T]:
        """See :class:`Lane`."""
        with span:
            found = work(span)
        return lambda: found


class Beside:
    """A thread, and on a GPU a stream, beside those of the caller.

    A thread, because a dispatch is several collectives, of which one needs on the host what the one before
    it has brought: nobody could start it while the caller computes.

    Memory that one stream allocates and the other one reads must be held until they have met: whoever starts
    a collective holds what he gives and what he gets until a later wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # Blocks of a large product that wait must not stand before the few of a transfer.
            self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        choose = partial(torch.cuda.set_device, device) if self._stream else None
        self._thread = ThreadPoolExecutor(1, "collectives", choose)

    def start(self, span: Span, work: Callable[[Span], T]) -> Callable[[], T]:
        """See :class:`Lane`."""
        ready, inference = self._moment(), torch.is_inference_mode_enabled()

        def run() -> tuple[T, torch.cuda.Event | None]:
            # Which mode and which stream are a matter of the thread.
            stream = torch.cuda.stream(self._stream) if self._stream else nullcontext()
            with torch.inference_mode(inference), stream:
                _after(ready)
                with span:
                    found = work(span)
                return found, self._moment()

        ending = self._thread.submit(run)

        def wait() -> T:
            span.announce()
            found, end = ending.result()
            _after(end)
            return found

        return wait

    def close(self) -> None:
        """Nothing more is started; whoever closes it after a fault does not wait for others."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _moment(self) -> torch.cuda.Event | None:
        """Now, in the current stream of this thread."""
        if self._stream is None:
            return None
        moment = torch.cuda.Event()  # type: ignore[no-untyped-call]
        moment.record()
        return moment


def _after(moment: torch.cuda.Event | None) -> None:
    """What this thread's current stream is given from now on comes after a moment of another one."""
    if moment is not None:
        torch.cuda.current_stream().wait_event(moment)


@contextmanager
def lane(overlap: Sequence[str], device: torch.device) -> Iterator[Lane]:
    """The lane of the collectives of a plan."""
    if not overlap:
        yield InLine()
        return
    beside = Beside(device)
    try:
        yield beside
    finally:
        beside.close()


def in_turn(batches: Sequence[Stages[T]]) -> list[T]:
    """The first stages of all micro-batches, then the second ones, …; the result of each.

    >>> def batch(name):
    ...     print(name, "router")
    ...     yield
    ...     print(name, "experts")
    ...     return name.upper()
    >>> in_turn([batch("a"), batch("b")])
    a router
    b router
    a experts
    b experts
    ['A', 'B']
    """
    results: dict[int, T] = {}

    def kept(place: int, stages: Stages[T]) -> Stages[None]:
        results[place] = yield from stages

    for _ in zip_longest(*(kept(place, stages) for place, stages in enumerate(batches))):
        pass
    return [results[place] for place in range(len(batches))]
