"""Looks into the files of models that are said to tie: whether the head that is stored is the embedding after all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from mol.merge.layers import find_structure
from mol.merge.model_config import tie_flag
from mol.merge.names import HEAD
from mol.merge.tied import ends_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.config import ModelReference
    from mol.io.checkpoint import Checkpoint

_CHUNK: Final = 1 << 20


def find_own_heads(checkpoints: Mapping[ModelReference, Checkpoint]) -> frozenset[ModelReference]:
    """Find the models whose head and embedding are stored and differ, although config.json does not say so.

    What was trained on both ends and saved with `tie_word_embeddings` still true is such a model, and transformers
    computes its scores with the head in the file. Reads no more than it takes to see a difference.

    Raises:
        CheckpointError: a weight file is damaged.
        OSError: a weight file cannot be read.
    """
    return frozenset(reference for reference, checkpoint in checkpoints.items() if _has_own_head(checkpoint))


def _has_own_head(checkpoint: Checkpoint) -> bool:
    if tie_flag(checkpoint.config) is False or not any(map(HEAD.search, checkpoint.tensors)):
        return False
    embedding, head = ends_of(checkpoint, find_structure(checkpoint.tensors, checkpoint.config))
    return embedding is not None and head is not None and not _are_equal(checkpoint, embedding, head)


def _are_equal(checkpoint: Checkpoint, a: str, b: str) -> bool:
    first, second = checkpoint.tensors[a], checkpoint.tensors[b]
    paths = [checkpoint.files[info.file].path for info in (first, second)]
    if first.dtype != second.dtype:
        from mol import _rust

        (found,) = _rust.compare([(paths[0], a, paths[1], b)])
        return found[4] == 0.0  # the largest difference
    with paths[0].open("rb") as left, paths[1].open("rb") as right:
        places = [_begin(checkpoint, file.fileno(), name) for file, name in ((left, a), (right, b))]
        for done in range(0, first.bytes, _CHUNK):
            size = min(_CHUNK, first.bytes - done)
            one, two = (os.pread(f.fileno(), size, at + done) for f, at in zip((left, right), places, strict=True))
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
