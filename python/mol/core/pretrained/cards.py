"""Writes the model card of a saved fusion or mixture from what is known of it."""

from __future__ import annotations

import logging
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mol import _rust
from mol.config.model_reference import is_local
from mol.config.mol_config import PERSONAL, MoLConfig
from mol.errors import CheckpointError
from mol.io.fusion_card import fusion_card
from mol.io.model_card import CardSource, read_license

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.core.pretrained.bundle import Kind
    from mol.core.pretrained.digests import ModelUse
    from mol.core.runtime import Runtime
    from mol.io.checkpoint import Checkpoint

_SHOWN_ELSEWHERE: Final = PERSONAL | {"models", "revisions"}
_log = logging.getLogger("mol")


def card_of_fusion(
    runtime: Runtime, uses: Mapping[str, ModelUse], kind: Kind, sections: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return the card of a fusion.

    Args:
        runtime: the fusion.
        uses: what is used of each model, by name.
        kind: of the save.
        sections: title -> lines to add, an evaluation say.
    """
    settings, host = runtime.config, runtime.host_name
    order = [host, *(name for name in settings.models if name != host and name in uses)]
    layers = sorted(zip(runtime.positions, runtime.fused, strict=True), key=lambda one: one[0])
    return fusion_card(
        title="Fusion",
        kind=kind,
        sources=[
            _source(uses[name].checkpoint, name, settings.revisions.get(name), "host" if name == host else "")
            for name in dict.fromkeys(order)
            if name in uses
        ],
        layers=[
            (position, [f"{_shown(spec.model)}{list(spec.blocks)}" for spec in layer.specs])
            for position, layer in layers
        ],
        settings=_changed_settings(settings),
        load='mol.MoLRuntime.from_pretrained("DIR")',
        version=_rust.__version__,
        sections=sections or {},
    )


def card_of_mixture(models: Mapping[str, Checkpoint | None], weights: str, kind: Kind) -> str:
    """Return the card of a mixture of models, of which some have no files."""
    return fusion_card(
        title="Mixture",
        kind=kind,
        sources=[_source(checkpoint, name, None, "") for name, checkpoint in models.items()],
        layers=[],
        settings={"weights": weights},
        load='mol.MoLMixture.from_pretrained("DIR")',
        version=_rust.__version__,
        sections={},
    )


def _source(checkpoint: Checkpoint | None, name: str, revision: str | None, role: str) -> CardSource:
    commit = (checkpoint.revision if checkpoint is not None else None) or revision
    return CardSource(_shown(name), commit is not None, commit, _license(checkpoint), role)


def _shown(name: str) -> str:
    """Return a model's name as others may see it: of a directory only its last part."""
    return Path(name).name or name if is_local(name) or name.startswith(("/", ".", "~")) else name


def _license(checkpoint: Checkpoint | None) -> dict[str, str]:
    try:
        return {} if checkpoint is None else read_license(checkpoint.directory)
    except CheckpointError as error:  # another model's card is no reason to lose what was trained
        _log.warning("%s", error)
        return {}


def _changed_settings(settings: MoLConfig) -> dict[str, Any]:
    """Return the settings that differ from the defaults, and say nothing of a machine or a person."""
    found = {}
    for item in fields(settings):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        value = getattr(settings, item.name)
        if item.name not in _SHOWN_ELSEWHERE and value != default:
            found[item.name] = {_shown(key): one for key, one in value.items()} if isinstance(value, dict) else value
    return found
