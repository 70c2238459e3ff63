"""Signals that end a command: each raises KeyboardInterrupt, so that what is done can be kept and said."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
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
    with _replaced(_handlers(_SIGNALS, lambda handler: handler is signal.SIG_DFL), _stop):
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """Hold back a signal that arrives while the context is open until it ends; a second one is obeyed immediately."""
    before = _handlers((signal.SIGINT, *_SIGNALS), callable)
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            before[number](number, frame)
        held.append(number)

    with _replaced(before, hold):
        yield
    for each in held:
        before[each](each, None)


def _handlers(numbers: Iterable[int], which: Callable[[Any], bool]) -> dict[int, Any]:
    """Return the handlers of some signals; none outside of the main thread, which alone may replace them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in handlers.items() if which(handler)}


@contextmanager
def _replaced(before: Mapping[int, Any], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise _Terminated(number)
