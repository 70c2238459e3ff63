"""What a recipe's models turn out to be once their names are resolved: the same model, or nothing a plan can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mol.errors import MergeError
from mol.regex import regex

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mol.config import ModelReference
    from mol.io.checkpoint import Checkpoint


_SHA256: Final = regex(r"[0-9a-f]{64}")


def spelled_twice(checkpoints: Mapping[ModelReference, Checkpoint]) -> dict[ModelReference, ModelReference]:
    """Map each reference to the one before it that resolved to the same directory or to the same commit of the Hub."""
    first: dict[object, ModelReference] = {}
    same: dict[ModelReference, ModelReference] = {}
    for reference, checkpoint in checkpoints.items():
        adapters = [part.digests for part in checkpoint.parts if part.role == "adapter"]
        adapter = tuple(sorted((name, digest) for digests in adapters for name, digest in digests.items()))
        keys: list[object] = [(checkpoint.directory, adapter)]
        try:
            found = checkpoint.directory.stat()
        except OSError:
            pass  # opened from elsewhere: its path is all that is known
        else:
            keys = [(found.st_dev, found.st_ino, adapter)]
            if checkpoint.revision is not None and not reference.is_directory():
                keys.append((reference.name.lower(), checkpoint.revision, adapter))  # the Hub takes names in any case
                if blobs := _blobs(checkpoint):
                    keys.append(
                        (blobs, checkpoint.revision, adapter)
                    )  # and the old name of a repository that was renamed
        earlier = next((first[key] for key in keys if key in first), None)
        if earlier is not None:
            same[reference] = earlier
        for key in keys:
            first.setdefault(key, earlier or reference)
    return same


def _blobs(checkpoint: Checkpoint) -> frozenset[str]:
    """Collect the SHA-256 of the files of weights, by which the Hub's cache names them; empty where it does not.

    The hash of a commit alone says too little: servers other than the Hub give several repositories one.
    """
    files = checkpoint.directories()[0].files
    names = frozenset(file.path.resolve().name for file in files)
    return names if all(map(_SHA256.fullmatch, names)) else frozenset()


def refuse_unnameable(checkpoints: Mapping[ModelReference, Checkpoint]) -> None:
    """Refuse files whose paths are not UTF-8, since a plan is JSON.

    Raises:
        MergeError: naming them.
    """
    files = [str(file.path) for checkpoint in checkpoints.values() for file in checkpoint.files]
    odd = dict.fromkeys(path for path in files if not _is_utf8(path))
    if odd:
        raise MergeError.listing(
            "these paths cannot be written into a plan", [f"{p!a} is not UTF-8; rename it" for p in odd]
        )


def refuse_overridden(checkpoints: Mapping[ModelReference, Checkpoint]) -> None:
    """Refuse an `override_architecture` that is not the model's own, which has no effect.

    Raises:
        MergeError: naming the models.
    """
    problems = []
    for reference, checkpoint in checkpoints.items():
        own = checkpoint.config.get("architectures") or []
        if reference.architecture not in (None, *own):
            problems.append(
                f"{reference}: `override_architecture: {reference.architecture}`, and config.json has "
                f"{', '.join(map(str, own)) or 'none'}; leave it out, tensors are matched by name"
            )
    if problems:
        raise MergeError.listing("a model is merged as the architecture that its config.json states", problems)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
