"""Writes the files next to a saved model: its card, and its host's tokenizer and image processor for pipelines."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Final

from mol.errors import CheckpointError
from mol.io.layout import CARD
from mol.io.side_files import find_file, is_tokenizer_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mol.io.checkpoint import Checkpoint

_PROCESSORS: Final = frozenset({"preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"})
_log = logging.getLogger("mol")


def write_extra(host: Checkpoint | None, card: str, directory: Path) -> None:
    """Write a card, and the files of a host's tokenizer and image processor, into a directory."""
    (directory / CARD).write_text(card, encoding="utf-8")
    if host is not None:
        copy_files(host, directory, is_input)


def is_input(name: str) -> bool:
    """Return whether a file belongs to a tokenizer or an image processor."""
    return name in _PROCESSORS or is_tokenizer_file(name)


def copy_files(model: Checkpoint, directory: Path, wanted: Callable[[str], bool]) -> None:
    """Copy the files of a model whose names are wanted into a directory."""
    for name in sorted(path.name for path in model.directory.iterdir() if wanted(path.name)):
        try:
            shutil.copyfile(find_file(model.directory, name).path, directory / name)
        except CheckpointError as error:  # a tokenizer is no reason to lose what was trained
            _log.warning("%s of %s is not saved with the model: %s", name, model.name, error)
