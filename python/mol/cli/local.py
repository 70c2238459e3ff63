"""Finds the checkpoints that are at hand, on this disk or in the Hub's cache, without ever asking the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mol.config.merge_config import ModelReference
    from mol.io.adapter import Adapter
    from mol.io.checkpoint import Checkpoint


def find(reference: ModelReference, cache_dir: Path | None = None) -> Checkpoint | None:
    """Open a model if it is on this machine; None where it would have to be downloaded.

    Args:
        reference: A local directory, or the id of a repository with an optional revision.
        cache_dir: The Hub cache, huggingface_hub's own if None.

    Raises:
        MolError: It is there, but it is damaged or of a format that is not supported.
        OSError: It is there, but cannot be read.
    """
    from mol.io.hub import resolve
    from mol.io.hub_cache import cached_snapshot

    if reference.adapter is not None:
        return _find_adapted(reference.model, reference.adapter, cache_dir)
    if _is_here(reference):
        from mol.io.checkpoint import Checkpoint

        directory, commit = resolve(reference)
        return Checkpoint.open(directory, name=str(reference), revision=commit)
    snapshot = cached_snapshot(reference, cache_dir)
    if snapshot is None:
        return None
    from mol.errors import CheckpointError
    from mol.io.checkpoint import Checkpoint
    from mol.io.weight_files import missing_files

    try:
        if missing_files(snapshot):
            return None
    except CheckpointError:  # a damaged index: opening the checkpoint says what is wrong with it
        pass
    return Checkpoint.open(snapshot, name=str(reference), revision=snapshot.name)


def _find_adapted(model: ModelReference, adapter: ModelReference, cache_dir: Path | None) -> Checkpoint | None:
    from mol.merge.adapters import with_adapter

    base, found = find(model, cache_dir), find_adapter(adapter, cache_dir)
    return None if base is None or found is None else with_adapter(base, found)


def find_adapter(adapter: ModelReference, cache_dir: Path | None) -> Adapter | None:
    """Open an adapter that is a directory or in the cache; None where it would have to be downloaded."""
    from mol.io.adapter import Adapter
    from mol.io.hub import resolve
    from mol.io.hub_cache import cached_snapshot
    from mol.io.layout import ADAPTER

    if _is_here(adapter):
        directory, commit = resolve(adapter, adapter=True)
    else:
        snapshot = cached_snapshot(adapter, cache_dir)
        if snapshot is None or not (snapshot / ADAPTER).exists():
            return None
        directory, commit = snapshot, snapshot.name
    return Adapter.open(directory, name=str(adapter), revision=commit)


def _is_here(reference: ModelReference) -> bool:
    from mol.config.model_reference import expanded

    return expanded(reference.name).exists() or reference.name.startswith(("/", ".", "~"))


def open_named(text: str, cache_dir: Path | None = None) -> Checkpoint:
    """Open the checkpoint that a command line names.

    Raises:
        FileNotFoundError: It is neither a directory nor in the cache.
        MolError: The name is malformed, or the checkpoint is damaged or of a format that is not supported.
    """
    from mol.config.model_reference import whole_model

    checkpoint = find(whole_model(text), cache_dir)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{text}: no such directory, and the Hugging Face cache does not hold its weights; "
            "this verb downloads nothing (`hf download` does)"
        )
    return checkpoint
