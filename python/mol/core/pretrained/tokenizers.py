"""Copies the files of a host's tokenizer and image processor next to a saved model, so that a pipeline finds them."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Final

from mol.errors import CheckpointError
from mol.io.side_files import find_file, is_tokenizer_file

if TYPE_CHECKING:
    from pathlib import Path

    from mol.io.checkpoint import Checkpoint

_PROCESSORS: Final = frozenset({"preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"})
_log = logging.getLogger("mol")


def copy_inputs(host: Checkpoint | None, directory: Path) -> None:
    """Copy the files of a host's tokenizer, and of its image processor, into a directory."""
    if host is None:
        return
    for name in sorted(path.name for path in host.directory.iterdir()):
        if name in _PROCESSORS or is_tokenizer_file(name):
            try:
                shutil.copyfile(find_file(host.directory, name).path, directory / name)
            except CheckpointError as error:  # a tokenizer is no reason to lose what was trained
                _log.warning("the host's %s is not saved with the model: %s", name, error)
