"""StepFiles: the files next to the weights of a step of a recipe, where they are not those of its base."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.io.side_files import SideFile


class StepFiles:
    """A directory that is there as long as this object, for the steps that are made of this one.

    Attributes:
        directory: where the files are.
        renamed: whether its embedding has as many rows as the base's, of which some are of other tokens.
    """

    def __init__(self, copies: Mapping[str, SideFile], texts: Mapping[str, str], *, renamed: bool) -> None:
        """Write them.

        Args:
            copies: relative path -> file that is copied.
            texts: relative path -> content.
            renamed: see the attribute.

        Raises:
            OSError: a file cannot be read or written.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="mol-"))
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self.renamed = renamed
        for name, file in copies.items():
            shutil.copyfile(file.path, self._target(name))
        for name, text in texts.items():
            self._target(name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def _target(self, name: str) -> Path:
        target = self.directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target
