"""Reads the JSON files that stand beside weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from mol.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

_DEEPEST: Final = 64


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        CheckpointError: it is no JSON, holds something else, or is nested without end.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}; fetch the file again from where it came") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, wanted a JSON object")
    if _is_deep(content):
        raise CheckpointError(f"{path} is nested more than {_DEEPEST} levels deep; no model's is")
    return content


def _is_deep(content: object) -> bool:
    """Tell a file that would exhaust the stack of whoever walks through it."""
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        values = [value.values() if isinstance(value, dict) else value for value in level]
        level = [inner for value in values for inner in value if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True
