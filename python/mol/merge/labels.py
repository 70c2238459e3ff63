"""Names of inputs that say nothing about this machine, for the files that travel with a merge."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mol.io.hub import hub_origin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mol.io.checkpoint import Checkpoint


class Labels:
    """Short names of inputs: the id of a Hub repository, else as few last parts of the path as tell them apart."""

    def __init__(self, checkpoints: Iterable[Checkpoint], places: Iterable[str] = ()) -> None:
        """Name the inputs.

        Args:
            checkpoints: the inputs.
            places: further paths that texts may mention, e.g. the output path in the recipe.
        """
        directories = {checkpoint.directory: checkpoint.name for checkpoint in checkpoints}
        origins = {directory: hub_origin(directory) for directory in directories}
        local = [directory.resolve() for directory in dict.fromkeys(directories) if origins[directory] is None]
        short = _shortest(list(dict.fromkeys(local)))
        self._labels = {
            directory: origin[0] if (origin := origins[directory]) else short[directory.resolve()]
            for directory in directories
        }
        replaced = {place: Path(place).name for place in places}
        for directory, name in directories.items():
            replaced |= dict.fromkeys((name, str(directory), str(directory.resolve())), self._labels[directory])
        # As YAML spells a path with an apostrophe inside quotes.
        replaced |= {place.replace("'", "''"): label for place, label in replaced.items()}
        # Longest first, since one path may begin another.
        self._replaced = sorted(
            ((place, label) for place, label in replaced.items() if Path(place).expanduser().is_absolute()),
            key=lambda pair: (-len(pair[0]), pair[0]),
        )

    def of(self, checkpoint: Checkpoint) -> str:
        """Return the short name of an input."""
        return self._labels[checkpoint.directory]

    def clean(self, text: str) -> str:
        """Replace the absolute paths of inputs in a text by their short names."""
        for place, label in self._replaced:
            text = text.replace(place, label)
        return text


def _shortest(directories: list[Path]) -> dict[Path, str]:
    """Give each directory as many of its last parts as make it unique."""
    labels = {}
    for directory in directories:
        for length in range(1, len(directory.parts) + 1):
            label = "/".join(directory.parts[-length:])
            if Counter("/".join(other.parts[-length:]) for other in directories)[label] == 1:
                break
        labels[directory] = label
    return labels
