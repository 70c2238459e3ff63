"""What the command says of an error, for people and as a JSON document."""

from __future__ import annotations

import os

import click

from mol.errors import MolError


def describe(error: MolError | OSError | click.ClickException) -> str:
    """Return an error as one text: without Python's number and quotes where the system refused."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return ": ".join([*names, error.strerror])
    return str(error) or type(error).__name__


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
