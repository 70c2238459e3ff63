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
            found[reference] = _adapted(model, reference.adapter, config, options, offline)
        except FileNotFoundError as error:
            failures[reference] = _located(error, reference, config)
        except (MolError, OSError) as error:
            failures[reference] = error
    _note_offline(offline)
    _raise_all("models of the recipe cannot be used", failures)
    return found


def adapted_steps(config: MergeConfig) -> tuple[ModelReference, ...]:
    """Return what a recipe names that is the result of one of its stages with an adapter on it."""
    documents = (*config.stages.values(), config)
    named = dict.fromkeys(reference for document in documents for reference in document.model_references())
    return tuple(reference for reference in named if reference.adapter is not None and config.is_stage(reference))


def adapted_step(
    name: str, step: Checkpoint, config: MergeConfig, options: MergeOptions
) -> dict[ModelReference, Checkpoint]:
    """Return a step of a recipe with each adapter that a later step, or the result, has on it.

    Raises:
        MolError: an adapter is not available, is damaged, or does not fit.
        OSError: one is missing or may not be read.
    """
    offline: list[str] = []
    found = {}
    for reference in adapted_steps(config):
        if reference.name == name:
            try:
                found[reference] = _adapted(step, reference.adapter, config, options, offline)
            except FileNotFoundError as error:
                raise _located(error, reference, config) from error
    _note_offline(offline)
    return found


def _adapted(
    model: Checkpoint,
    reference: ModelReference | None,
    config: MergeConfig,
    options: MergeOptions,
    offline: list[str],
) -> Checkpoint:
    """Return a model with the adapter that the recipe has on it, if any."""
    if reference is None:
        return model
    from mol.io.adapter import Adapter
    from mol.merge.adapters import with_adapter
    from mol.merge.surviving import with_surviving

    directory, revision = _resolve(reference, config, options, adapter=True, offline=offline)
    adapter = Adapter.open(directory, name=str(reference), revision=revision)
    dtype = config.out_dtype or config.dtype
    return with_surviving(with_adapter(model, adapter), model, adapter.name, dtype)


def tokenizer_directory(
    config: MergeConfig, checkpoints: Mapping[ModelReference, Checkpoint], options: MergeOptions
) -> Path:
    """Return the directory of the tokenizer that a recipe chooses, found or downloaded if it is no input."""
    source = config.tokenizer_source
    if source is None or isinstance(source, str):
        source = config.donor()
    # A step of the recipe is no directory of that name; an adapter has no tokenizer.
    for name in (source, source.model):
        if name in checkpoints:
            return checkpoints[name].directory
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


def _located(error: FileNotFoundError, reference: ModelReference, config: MergeConfig) -> FileNotFoundError:
    """Return the error with where the recipe names the model."""
    documents = (config, *config.stages.values())
    location = next((part.locations[reference] for part in documents if reference in part.locations), None)
    return FileNotFoundError(f"{location}: {error}" if location else str(error))


def _note_offline(commits: Sequence[str]) -> None:
    if commits:
        _log.warning("offline: using the cached commits %s", ", ".join(commits))


def _raise_all(header: str, failures: Mapping[ModelReference, MolError | OSError]) -> None:
    errors: Sequence[MolError | OSError] = list(failures.values())
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise MergeError.listing(header, [str(error) for error in errors])
