"""Where a command's words go: results to stdout, everything else to stderr, each in its width and colour."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from typing import TYPE_CHECKING, TextIO

import click

from mol.cli.signals import held_back
from mol.cli.streams import json_printable, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DEFAULT_WIDTH = 80
LABEL_WIDTH = 10
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


class Console:
    """One command's output. Made by `main`, set up by the verb's own `--quiet`, `--verbose` and `--json`.

    Attributes:
        quiet: Only errors are printed.
        verbose: How often `-v` was given; lists are complete from 1 on.
        json: stdout holds one JSON document and nothing else.
        pending: Notes found before the options were read, printed once they are.
        clear_line: Takes a live progress line off the terminal before anything else is written there.
    """

    def __init__(self) -> None:
        """Print everything until a verb configures it otherwise."""
        self.quiet = False
        self.verbose = 0
        self.json = False
        self.json_written = False
        self.pending: list[str] = []
        self.clear_line: Callable[[], None] | None = None

    def configure(self, *, quiet: bool, verbose: int, json: bool) -> None:
        """Apply the verb's options, then print what was waiting for them."""
        self.quiet, self.verbose, self.json = quiet, verbose, json
        logging.getLogger("mol").setLevel(
            logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO,
        )
        if quiet or not sys.stderr.isatty():
            # huggingface_hub reads this when it is loaded, which is later; its bars are for terminals only.
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for text in self.pending:
            self.note(text)
        self.pending.clear()

    def result(self, text: str = "") -> None:
        """Print what was requested on stdout; with `--json` the document holds it instead."""
        if not self.json:
            self._write(printable(text), sys.stdout)

    def status(self, text: str = "") -> None:
        """Print a result that only confirms: as `result`, but silent with `--quiet`."""
        if not self.quiet:
            self.result(text)

    def document(self, value: object, **large: str) -> None:
        """Print the one JSON document of `--json`; numbers that JSON lacks (NaN, infinities) are null.

        Args:
            value: the document; a non-empty mapping if `large` is given.
            large: further entries of it, each as JSON in ASCII, printed as they are: they may be tens of megabytes.
        """
        if self.json and not self.json_written:
            from json import dumps

            text = json_printable(dumps(_finite(value), indent=2, ensure_ascii=False), sys.stdout)
            with held_back():  # half a document is none
                self.json_written = True
                if large:
                    sys.stdout.write(text.removesuffix("\n}"))
                    for key, entry in large.items():
                        sys.stdout.write(f',\n  "{key}": ')
                        sys.stdout.write(entry)
                    text = "\n}"
                self._write(text, sys.stdout)

    def note(self, text: str) -> None:
        """Print something worth knowing on stderr."""
        if not self.quiet:
            self._message("note", text)

    def warning(self, text: str) -> None:
        """Print something that may not be what was meant on stderr."""
        if not self.quiet:
            self._message("warning", text)

    def error(self, text: str) -> None:
        """Print why the command did not do what was requested on stderr, with `--quiet` too."""
        self._message("error", text)

    def progress_line(self, text: str) -> None:
        """Print one plain line of progress, for a log."""
        if not self.quiet:
            self._write(printable(text), sys.stderr)

    def _message(self, kind: str, text: str) -> None:
        columns = width_of(sys.stderr)
        head, *rest = f"{kind}: {printable(text)}".split("\n")
        lines = wrap(head, columns, hang=2)
        lines[0] = lines[0].replace(f"{kind}:", style(f"{kind}:", _COLOURS[kind], sys.stderr), 1)
        for line in rest:
            lines.extend(wrap(line, columns, hang=2))
        self._write("\n".join(lines), sys.stderr)

    def _write(self, text: str, stream: TextIO) -> None:
        if self.clear_line is not None:
            self.clear_line()
        click.echo(text, file=stream)


class LogHandler(logging.Handler):
    """Prints what the package logs (logger "mol") in the form of the command's own messages."""

    def __init__(self, console: Console) -> None:
        """Print to this console."""
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, by its level."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self.console.error(text)
        elif record.levelno >= logging.WARNING:
            self.console.warning(text)
        else:
            self.console.note(text)


def style(text: str, colour: str, stream: TextIO) -> str:
    """Colour a text on a terminal that shows colours, unless NO_COLOR is set (to any value but the empty one)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return click.style(text, fg=colour, bold=True)


def width_of(stream: TextIO) -> int | None:
    """Return the columns that messages to a stream are wrapped to; None, for a log or a pipe, leaves lines whole."""
    if stream.isatty() or os.environ.get("COLUMNS"):
        import shutil

        return max(40, shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns)
    return None


def wrap(line: str, columns: int | None, *, hang: int) -> list[str]:
    """Break one line at spaces; what follows is indented `hang` deeper. Names and paths are never broken."""
    if columns is None or len(line) <= columns:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.strip(),
        columns,
        initial_indent=indent,
        subsequent_indent=indent + " " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )


def field(label: str, text: str) -> str:
    """Format one entry of a plan or report: the label in a column of its own, the text next to it, 80 columns wide."""
    columns = width_of(sys.stdout) or DEFAULT_WIDTH
    return "\n".join(
        textwrap.wrap(
            text,
            columns,
            initial_indent=label.ljust(LABEL_WIDTH),
            subsequent_indent=" " * LABEL_WIDTH,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ) or label  # fmt: skip


def listing(label: str, lines: Iterable[str], *, limit: int | None) -> list[str]:
    """Format entries under one label, the first next to it, each wrapped; past the limit only their number."""
    every = list(lines)
    shown = every if limit is None else every[:limit]
    out = [field(label if i == 0 else "", line) for i, line in enumerate(shown)]
    if len(every) > len(shown):
        out.append(field("", f"... and {len(every) - len(shown):,} more (-v lists all)"))
    return out


def _finite(value: object) -> object:
    """Return the same value with every float that is not finite replaced by None."""
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
