"""Finds the checkpoints that are at hand, on this disk or in the Hub's cache, without ever asking the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mol.config.merge_config import ModelReference
    from mol.io.checkpoint import Checkpoint

_COMMIT = re.compile(r"[0-9a-f]{40}")


def find(reference: ModelReference, cache_dir: Path | None = None) -> Checkpoint | None:
    """Open a model if it is at hand; None where only a download could tell.

    Args:
        reference: A local directory, or the id of a repository with an optional revision.
        cache_dir: The Hub cache, huggingface_hub's own if None.

    Raises:
        MolError: It is there, but it is damaged or of a format that is not supported.
        OSError: It is there, but cannot be read.
    """
    from mol.io.checkpoint import Checkpoint

    if Path(reference.name).expanduser().exists() or reference.name.startswith(("/", ".", "~")):
        from mol.io.hub import resolve

        directory, commit = resolve(reference)
        return Checkpoint.open(directory, name=str(reference), revision=commit)
    snapshot = _snapshot(reference, cache_dir)
    if snapshot is None or not _has_weights(snapshot):
        return None
    return Checkpoint.open(snapshot, name=str(reference), revision=snapshot.name)


def open_named(text: str, cache_dir: Path | None = None) -> Checkpoint:
    """Open the checkpoint that a command line names.

    Raises:
        FileNotFoundError: It is neither a directory nor in the cache.
        MolError: The name is malformed, or the checkpoint is damaged or of a format that is not supported.
    """
    from mol.config.merge_config import ModelReference

    checkpoint = find(ModelReference.parse(text), cache_dir)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{text}: no such directory, and the Hugging Face cache does not hold its weights; "
            "this verb downloads nothing (`hf download` does)"
        )
    return checkpoint


def _snapshot(reference: ModelReference, cache_dir: Path | None) -> Path | None:
    """The directory of a revision in the Hub's cache, by the cache's documented layout: its own look-up loads much."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = Path(cache_dir or HF_HUB_CACHE) / f"models--{reference.name.replace('/', '--')}"
    revision = reference.revision or "main"
    named = repository / "refs" / revision
    if named.is_file():
        revision = named.read_text().strip()
    snapshot = repository / "snapshots" / revision
    return snapshot if _COMMIT.fullmatch(revision) and snapshot.is_dir() else None


def _has_weights(snapshot: Path) -> bool:
    """Whether a snapshot is more than its config: caches often hold a few files of a repository only."""
    from mol.errors import CheckpointError
    from mol.io.json_file import read_object
    from mol.io.weight_files import INDEX, SINGLE, counted_shards

    if not (snapshot / "config.json").exists():
        return False
    if (snapshot / SINGLE).exists():
        return True
    index = snapshot / INDEX
    if not index.exists():
        return bool(counted_shards(path.name for path in snapshot.iterdir()))
    try:
        shards = set(read_object(index)["weight_map"].values())
    except (CheckpointError, KeyError, AttributeError, TypeError):
        return True  # a damaged index: opening the checkpoint says what is wrong with it
    return all((snapshot / shard).exists() for shard in shards)
