"""Progress of a training run: a bar on a terminal, a line of the log now and then anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_log: Final = logging.getLogger("mol")


class Progress:
    """Shows steps, loss, tokens per second and the time left."""

    def __init__(self, total: int | None, done: int, *, shown: bool) -> None:
        """Start the clock.

        Args:
            total: steps of the whole run, None if that is not known.
            done: steps that an earlier run made.
            shown: whether this process shows anything.
        """
        self._total = total
        self._done = self._first = done
        self._shown = shown
        self._tokens = 0.0
        self._started = self._marked = time.perf_counter()
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc="training", unit="step", dynamic_ncols=True)

    def step(self, tokens: float) -> None:
        """Count an optimiser step and its tokens."""
        self._done += 1
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update()

    def report(self, metrics: Mapping[str, float]) -> float:
        """Show the metrics of the last steps, and return their tokens per second."""
        now = time.perf_counter()
        rate = self._tokens / max(now - self._marked, 1e-9)
        self._tokens, self._marked = 0.0, now
        loss = metrics["total_loss"]
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} tokens/s")
        elif self._shown:
            per_step = (now - self._started) / max(self._done - self._first, 1)
            left = "" if self._total is None else f" of {self._total}"
            rest = "" if self._total is None else f", {_clock(per_step * (self._total - self._done))} left"
            _log.info("step %d%s: loss %.4f, %.0f tokens/s%s", self._done, left, loss, rate, rest)
        return rate

    def write(self, line: str) -> None:
        """Show a line of its own."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif self._shown:
            _log.info("%s", line)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
