"""Rebuilds the runtime that a save describes, from the models that it names, and checks that they are the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from mol.config.mol_config import MoLConfig
from mol.core.building import build_layer
from mol.core.pretrained.digests import ModelUse, check_model, find_models
from mol.core.pretrained.options import check_offline
from mol.core.pretrained.saving import is_copy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mol.core.pretrained.described import Description
    from mol.core.runtime import Runtime

_R = TypeVar("_R", bound="Runtime")


def build_runtime(kind: type[_R], description: Description, given: Mapping[str, Any]) -> _R:
    """Build the runtime of a description, with fresh adapters and routers.

    Args:
        kind: the class of the runtime.
        description: settings, host and layers.
        given: settings that replace those of the description.

    Raises:
        MolError: a model is not as the description has it.
        OSError: a model cannot be loaded.
    """
    runtime = kind(MoLConfig(**{**description.settings, **given}))
    runtime.choose_host(description.host or runtime.config.models[0])
    for position, specs in description.layers:
        runtime.put_layer(build_layer(runtime, specs, position).train(runtime.training), position)
    return runtime


def rebuild(
    kind: type[_R],
    description: Description,
    models: Mapping[str, Any],
    directory: Path,
    given: Mapping[str, Any],
    *,
    allow_changed: bool,
    offline: bool,
) -> _R:
    """Build the runtime of a save, of the models that it was saved with.

    Args:
        kind: the class of the runtime.
        description: what was saved.
        models: the record of each model, by name.
        directory: of the save.
        given: settings of whoever loads it.
        allow_changed: whether models may differ from those that it was saved with.
        offline: whether models of the Hub are refused.

    Raises:
        MolError: a model changed, or is not as the description has it.
        OSError: a model cannot be loaded.
    """
    paths = find_models(models, directory, given.get("paths", {}))
    check_offline(offline, {*description.settings["models"]} - paths.keys())
    if any(map(is_copy, models.values())):  # which lack the blocks that nothing uses, so they are not loaded whole
        given = {"memory_efficient": True, **given}
    runtime = build_runtime(kind, description, {**given, "paths": paths})
    if not allow_changed:
        for name, use in used_models(runtime).items():
            check_model(models.get(name), use)
    return runtime


def load_weights(
    module: torch.nn.Module, weights: Mapping[str, torch.Tensor], requested: torch.dtype | None = None
) -> None:
    """Load weights of the names and shapes of a module exactly: in their dtypes, widened to a dtype if it is given."""
    for name, parameter in module.named_parameters():
        dtype = weights[name].dtype
        parameter.data = parameter.data.to(dtype if requested is None else torch.promote_types(dtype, requested))
    module.load_state_dict(weights)


def used_models(runtime: Runtime) -> dict[str, ModelUse]:
    """Return what is used of each model, by name; of the host that is all of it."""
    fusion = runtime.fusion()
    blocks: dict[str, set[int]] = {}
    for layer in fusion.layers.values():
        for spec in layer.specs:
            blocks.setdefault(spec.model, set()).update(spec.blocks)
    return {
        name: ModelUse(source.checkpoint, source, None if name == runtime.host_name else blocks[name])
        for name, source in fusion.sources.items()
        if source.checkpoint is not None
    }
