"""Compares head and embedding in the files of models whose config.json says that they are tied."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from mol.structure.model_config import tie_flag
from mol.structure.names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.config import ModelReference
    from mol.io.checkpoint import Checkpoint
    from mol.structure.layers import Structure

_CHUNK: Final = 1 << 20


def find_own_heads(
    checkpoints: Mapping[ModelReference, Checkpoint], structures: Mapping[ModelReference, Structure]
) -> frozenset[ModelReference]:
    """Find the models whose head and embedding are stored and differ, although config.json does not say so.

    What was trained on both ends and saved with `tie_word_embeddings` still true is such a model, and transformers
    computes its scores with the head in the file. Reads no more than it takes to see a difference.

    Args:
        checkpoints: the models.
        structures: their layers, from `find_structures`.

    Raises:
        CheckpointError: a weight file is damaged.
        OSError: a weight file cannot be read.
    """
    return frozenset(name for name, checkpoint in checkpoints.items() if _has_own_head(checkpoint, structures[name]))


def ends_of(checkpoint: Checkpoint, structure: Structure) -> tuple[str | None, str | None]:
    """Name the embedding of a model, and the head of its shape that is stored too; None for what is not there."""
    tensors = checkpoint.tensors
    matrices = [name for name in structure.loose if len(tensors[name].shape) == 2]
    embeddings = [name for name in matrices if EMBEDDING.search(name)]
    for head in filter(HEAD.search, matrices):
        for embedding in embeddings:
            if tensors[head].shape == tensors[embedding].shape:
                return embedding, head
    return next(iter(embeddings), None), None


def _has_own_head(checkpoint: Checkpoint, structure: Structure) -> bool:
    if tie_flag(checkpoint.config) is False:
        return False
    embedding, head = ends_of(checkpoint, structure)
    if embedding is None or head is None or head in checkpoint.made:  # config.json was written with what is made
        return False
    return not _are_equal(checkpoint, embedding, head)


def _are_equal(checkpoint: Checkpoint, a: str, b: str) -> bool:
    first, second = checkpoint.tensors[a], checkpoint.tensors[b]
    paths = [checkpoint.files[info.file].path for info in (first, second)]
    if first.dtype != second.dtype:
        from mol import _rust

        (found,) = _rust.compare([(paths[0], a, paths[1], b)], mmap=False)
        return found[4] == 0.0  # the largest difference
    with paths[0].open("rb") as left, paths[1].open("rb") as right:
        offsets = [_begin(checkpoint, file.fileno(), name) for file, name in ((left, a), (right, b))]
        for done in range(0, first.bytes, _CHUNK):
            size = min(_CHUNK, first.bytes - done)
            one, two = (os.pread(f.fileno(), size, at + done) for f, at in zip((left, right), offsets, strict=True))
            if one != two:
                return False
    return True


def _begin(checkpoint: Checkpoint, file: int, name: str) -> int:
    """Find where the data of a tensor begins: tensors are in the order of the file, and it has no holes."""
    mine = checkpoint.tensors[name].file
    begin = 8 + int.from_bytes(os.pread(file, 8, 0), "little")
    for other, info in checkpoint.tensors.items():
        if other == name:
            break
        if info.file == mine:
            begin += info.bytes
    return begin
