"""Signals that end a command: each raises KeyboardInterrupt, so that what is done can be kept and said."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # Python itself handles SIGINT; the default of these is silent death


class _Terminated(KeyboardInterrupt):
    """A signal other than SIGINT ended the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def kind_of(stop: BaseException) -> tuple[str, int]:
    """Return what a stop is called and the exit code it gives: 128 and the number of the signal."""
    if isinstance(stop, _Terminated):
        return f"terminated ({signal.Signals(stop.number).name})", 128 + stop.number
    return "interrupted", 128 + signal.SIGINT


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP while the context is open, unless they are ignored (`nohup`)."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: handler for number, handler in before.items() if handler is signal.SIG_DFL}
    for number in before:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise _Terminated(number)
