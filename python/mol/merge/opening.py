"""Finds or downloads the models of a recipe, and opens them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mol.errors import MergeError, MolError
from mol.merge.options import MergeOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mol.config import MergeConfig
    from mol.config.model_reference import ModelReference
    from mol.io.checkpoint import Checkpoint, Known

_log = logging.getLogger("mol")


def resolve_checkpoints(config: MergeConfig, options: MergeOptions | None = None) -> dict[ModelReference, Checkpoint]:
    """Find or download every model of a recipe and of its stages, and read the headers of their weights.

    Raises:
        MolError: a model is not available or is damaged; where several are, a MergeError lists them.
        OSError: a model is missing or may not be read.
    """
    from mol.io.checkpoint import Checkpoint

    options = options or MergeOptions()
    found: dict[ModelReference, Checkpoint] = {}
    models: dict[ModelReference, Checkpoint] = {}  # without adapters: several may be on one
    failures: dict[ModelReference, MolError | OSError] = {}
    offline: list[str] = []
    known: Known = {}
    for reference in config.inputs():
        try:
            model = models.get(reference.model)
            if model is None:
                directory, revision = _resolve(reference.model, config, options, offline=offline)
                model = Checkpoint.open(directory, name=str(reference.model), revision=revision, known=known)
                models[reference.model] = model
            if reference.adapter is not None:
                from mol.io.adapter import Adapter
                from mol.merge.adapters import with_adapter
                from mol.merge.surviving import with_surviving

                directory, revision = _resolve(reference.adapter, config, options, adapter=True, offline=offline)
                adapter = Adapter.open(directory, name=str(reference.adapter), revision=revision)
                dtype = config.out_dtype or config.dtype
                model = with_surviving(with_adapter(model, adapter), model, adapter.name, dtype)
            found[reference] = model
        except FileNotFoundError as error:
            location = config.locations.get(reference)
            failures[reference] = FileNotFoundError(f"{location}: {error}" if location else str(error))
        except (MolError, OSError) as error:
            failures[reference] = error
    if offline:
        _log.warning("offline: using the cached commits %s", ", ".join(offline))
    _raise_all("models of the recipe cannot be used", failures)
    return found


def tokenizer_directory(
    config: MergeConfig, checkpoints: Mapping[ModelReference, Checkpoint], options: MergeOptions
) -> Path:
    """Return the directory of the tokenizer that a recipe chooses, found or downloaded if it is no input."""
    source = config.tokenizer_source
    if source is None or isinstance(source, str):
        source = config.donor()
    if source in checkpoints:
        return checkpoints[source].directory
    return _resolve(source.model, config, options, weights=False)[0]


def _resolve(
    reference: ModelReference,
    config: MergeConfig,
    options: MergeOptions,
    *,
    weights: bool = True,
    adapter: bool = False,
    offline: list[str] | None = None,
) -> tuple[Path, str | None]:
    from mol.io.hub import resolve

    return resolve(
        reference,
        cache_dir=options.cache_dir,
        token=options.token,
        weights=weights,
        adapter=adapter,
        code=options.trust_remote_code or config.trust_remote_code,
        offline=offline,
    )


def _raise_all(header: str, failures: Mapping[ModelReference, MolError | OSError]) -> None:
    errors: Sequence[MolError | OSError] = list(failures.values())
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise MergeError.listing(header, [str(error) for error in errors])
