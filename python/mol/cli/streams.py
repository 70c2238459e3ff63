"""The standard streams of a command: closed, full or broken ones are survived, and no name can steer a terminal."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from mol.regex import regex

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator

# Control characters but tab and line feed, separators of lines, and what changes the direction of text; and the
# halves of surrogate pairs, by which Python holds the bytes of a name that is not UTF-8.
_UNPRINTABLE = regex("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text with everything that would steer a terminal, or cannot be encoded, written as an escape."""
    return _UNPRINTABLE.sub(_escape, text)


def json_printable(text: str, stream: TextIO) -> str:
    """Return JSON in which strings hold nothing of that either; it means the same."""
    text = _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        from json import dumps, loads

        return dumps(loads(text), indent=2)
    return text


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte itself
    named = {"\r": "\\r", "\f": "\\f", "\v": "\\v"}.get(match[0])
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


class Guarded:
    """A stream that takes what is written also after it has failed, and remembers the first failure.

    Attributes:
        failure: why nothing arrives any more; None while everything does.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to this stream."""
        self.stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        if self.failure is None:
            try:
                return self.stream.write(text)
            except OSError as error:
                self._give_up(error)
            except UnicodeEncodeError:  # a terminal of another encoding
                encoding = self.stream.encoding or "ascii"
                return self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Write out what is buffered, or drop it."""
        if self.failure is None:
            try:
                self.stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = error
        # What is still buffered would fail once more when the process ends, and change its exit code.
        try:
            number = self.stream.fileno()
        except (OSError, AttributeError):
            return  # no file behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        """Return what the stream has by this name."""
        return getattr(self.stream, name)


@contextmanager
def guarded_streams() -> Iterator[Guarded]:
    """Context manager that guards stdout and stderr and yields stdout's guard."""
    _open_closed()
    before = sys.stdout, sys.stderr
    out, err = Guarded(sys.stdout), Guarded(sys.stderr)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Put /dev/null where the shell closed a stream: the next file, one of weights perhaps, would get its number."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process
