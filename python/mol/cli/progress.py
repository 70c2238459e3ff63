"""Progress of a long call: a line that rewrites itself on a terminal, a plain line now and then in a log.

Written here rather than taken from click, tqdm or rich: a resumed merge starts part-way, which their rates and
times left take for work done, and none of them speaks both to a terminal and to a log.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from mol.cli import units
from mol.cli.console import width_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mol.cli.console import Console

LOG_EVERY = 5.0
DRAW_EVERY = 0.1
WINDOW = 10.0
_BAR = 10


class Progress:
    """Shows how far a call has come; used as its `on_progress`, and as a context manager, which removes the line."""

    def __init__(self, console: Console, verb: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Show nothing yet.

        Args:
            console: Where to; with `--quiet` nothing is shown.
            verb: What is being done: "merging".
            clock: Seconds that only rise.
        """
        self.console = console
        self.verb = verb
        self.clock = clock
        self.live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.drawn = False
        self.last_shown = clock() if not self.live else float("-inf")
        self.marks: deque[tuple[float, int]] = deque()

    def __enter__(self) -> Progress:
        """Register with the console, which removes the line whenever it writes."""
        self.console.clear_line = self._clear
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Remove the line."""
        self._clear()
        self.console.clear_line = None

    def __call__(self, read: int, read_total: int, written: int = 0, written_total: int = 0) -> None:
        """Take one report, in bytes, and show it when it is time."""
        now = self.clock()
        self.marks.append((now, read + written))
        while now - self.marks[0][0] > WINDOW and len(self.marks) > 2:
            self.marks.popleft()
        if self.console.quiet or now - self.last_shown < (DRAW_EVERY if self.live else LOG_EVERY):
            return
        self.last_shown = now
        text = self._text(read, read_total, written, written_total)
        if self.live:
            self._draw(text)
        else:
            self.console.progress_line(text)

    def _text(self, read: int, read_total: int, written: int, written_total: int) -> str:
        done, total = read + written, read_total + written_total
        share = done / total if total else 1.0
        (first, had), (now, _) = self.marks[0], self.marks[-1]
        rate = (done - had) / (now - first) if now > first else 0.0
        bar = f"[{'#' * int(share * _BAR):.<{_BAR}}] " if self.live else ""
        parts = [f"{self.verb} {bar}{int(share * 100):3d}%  read {units.size(read)}"]
        if written_total:
            parts.append(f", wrote {units.size(written)}")
        if rate > 0:
            parts.append(f", {units.size(rate)}/s, {units.clock((total - done) / rate)} left")
        return "".join(parts)

    def _draw(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text[: (width_of(sys.stderr) or 80) - 1]}")
        sys.stderr.flush()
        self.drawn = True

    def _clear(self) -> None:
        if self.drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self.drawn = False
