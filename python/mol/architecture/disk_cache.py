"""Keeps what was found out about a config on disk, so that it is not found out twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mol.architecture.info import ArchitectureInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger("mol")
_FORM: Final = 1
"""To be raised when the same releases find something else."""


def default_directory() -> Path:
    """Return `architectures` in the directory that MOL_CACHE names, else in ~/.cache/mol."""
    root = os.environ.get("MOL_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "mol") / "architectures"


class DiskCache:
    """One JSON file for each config, named by its digest and the releases that read it."""

    def __init__(self, directory: Path | str | None = None) -> None:
        """Use a directory, made when the first file is written; the default one if None."""
        self.directory = default_directory() if directory is None else Path(directory)

    def path(self, config: Mapping[str, Any]) -> Path:
        """Return the file for a config."""
        from mol import _rust  # not above, so that the types of this module do not need the built extension

        key = [_FORM, _rust.__version__, version("transformers"), config]
        text = json.dumps(key, sort_keys=True, separators=(",", ":"))
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def read(self, config: Mapping[str, Any], name: str) -> ArchitectureInfo | None:
        """Return what is known of a config, under a model's name; None where nothing is, or the file is damaged."""
        path = self.path(config)
        try:
            return ArchitectureInfo.from_dict(json.loads(path.read_bytes())).named(name)
        except (OSError, KeyError, TypeError, ValueError):
            return None

    def write(self, config: Mapping[str, Any], info: ArchitectureInfo) -> None:
        """Keep what was found; a directory that cannot be written costs the time of the next look, nothing else."""
        path = self.path(config)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self.directory, delete=False) as file:
                json.dump(info.to_dict(), file)
            Path(file.name).replace(path)
        except OSError as error:
            _log.debug("%s: not kept (%s)", path, error)
