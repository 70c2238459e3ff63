"""Writes model directories that hold a config.json and no weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def write_config(directory: Path, model_type: str, **keys: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """Write config.json of a type, with sizes of the type's own where `keys` gives none; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type, **keys}), encoding="utf-8")
    return str(directory)
