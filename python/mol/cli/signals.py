"""Signals that end a command: each raises KeyboardInterrupt, so that what is done can be kept and said."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


@contextmanager
def held_back() -> Iterator[None]:
    """Hold back a signal that arrives while the context is open until it ends; a second one is obeyed immediately."""
    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *_SIGNALS):
            if callable(handler := signal.getsignal(number)):
                before[number] = handler
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            before[number](number, frame)
        held.append(number)

    for each in before:
        signal.signal(each, hold)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    for each in held:
        before[each](each, None)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise _Terminated(number)
