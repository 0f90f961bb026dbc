"""Being asked to end: SIGTERM and SIGHUP are taken as Ctrl-C is, so that nothing half-written is left."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal has asked this process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside the block these signals raise :class:`Stopped`, but for one that is ignored, as under nohup."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    heard = [each for each, handler in before.items() if handler is not signal.SIG_IGN]
    for each in heard:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in heard:
            signal.signal(each, before[each])


def interrupt_behind(fault: BaseException | None) -> KeyboardInterrupt | None:
    """The interruption that a fault is, or follows from: inside the making of a class Python wraps it."""
    while fault is not None and not isinstance(fault, KeyboardInterrupt):
        fault = fault.__cause__
    return fault


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """As a shell gives it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT)
