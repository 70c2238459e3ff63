"""Which models of a recipe turn out to be the same once their names are resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mol.config import ModelReference
    from mol.io.checkpoint import Checkpoint


def spelled_twice(checkpoints: Mapping[ModelReference, Checkpoint]) -> dict[ModelReference, ModelReference]:
    """Map each reference to the one before it that resolved to the same directory or to the same commit of the Hub."""
    first: dict[object, ModelReference] = {}
    same: dict[ModelReference, ModelReference] = {}
    for reference, checkpoint in checkpoints.items():
        keys: list[object] = [checkpoint.directory]
        try:
            found = checkpoint.directory.stat()
        except OSError:
            pass  # opened from elsewhere: its path is all that is known
        else:
            keys = [(found.st_dev, found.st_ino)]
            if checkpoint.revision is not None and not reference.is_directory():
                keys.append((reference.name.lower(), checkpoint.revision))  # the Hub takes names in any case
        earlier = next((first[key] for key in keys if key in first), None)
        if earlier is not None:
            same[reference] = earlier
        for key in keys:
            first.setdefault(key, earlier or reference)
    return same


def same_weights(checkpoints: Mapping[ModelReference, Checkpoint]) -> Iterator[str]:
    """Warn of different directories with the same files of weights, such as two commits of one repository."""
    first: dict[object, ModelReference] = {}
    for reference, checkpoint in checkpoints.items():
        try:
            found = [file.path.stat() for file in checkpoint.files]
        except OSError:
            continue
        files = tuple(sorted((entry.st_dev, entry.st_ino) for entry in found))
        if not files:
            continue
        earlier = first.setdefault(files, reference)
        if earlier != reference:
            yield f"{reference} and {earlier} have the very same files of weights: they do not differ in any tensor"
