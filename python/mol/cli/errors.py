"""What the command says of an error, for people and as a JSON document."""

from __future__ import annotations

from pathlib import Path

import click

from mol.errors import MolError, reason_of


def describe(error: MolError | OSError | click.ClickException) -> str:
    """Return an error as one text."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, FileNotFoundError) and not _has_working_directory():
        return "the working directory was removed, so no path can be found from here; change to one that is there"
    return reason_of(error)


def _has_working_directory() -> bool:
    try:
        return bool(Path.cwd())
    except FileNotFoundError:
        return False


def error_document(error: MolError | OSError | click.ClickException, text: str) -> dict[str, object]:
    """Return the `error` of a JSON document.

    Args:
        error: what happened.
        text: its message.
    """
    problems = list(error.problems) if isinstance(error, MolError) else []
    return {"type": type(error).__name__, "message": text, "problems": problems}


def stop_document(text: str) -> dict[str, object]:
    """Return the JSON document of a command that a signal ended.

    Args:
        text: which signal, and how to go on.
    """
    return {"error": {"type": "Interrupted", "message": text, "problems": []}}
