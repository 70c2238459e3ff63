"""The model card of a merge and the recipe that travels along; what they quote is read before a weight is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mol.config.methods import METHODS
from mol.errors import MolError
from mol.io.hub_cache import hub_origin
from mol.io.layout import ADAPTER
from mol.io.model_card import LISTED, CardSource, model_card, read_license
from mol.merge.labels import Labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.config import MergeConfig
    from mol.merge.options import MergeOptions
    from mol.merge.planned import PlannedMerge


class Card(NamedTuple):
    """What card and manifest say about the inputs.

    Attributes:
        labels: names of the inputs.
        sources: the inputs as the card names them.
        recipe: the recipe's YAML without paths of this machine.
        notes: what the inputs' own cards hold and cannot be quoted, one line each.
        remarks: notes and warnings of the plan that travel with the merge.
    """

    labels: Labels
    sources: tuple[CardSource, ...]
    recipe: str
    notes: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def prepare_card(planned: PlannedMerge, options: MergeOptions) -> Card:
    """Read what the card quotes. That is optional: where it cannot be read it is left out, with a note."""
    config = planned.config
    paths = [str(path) for path in (config.output_path, config.tokenizer_source) if path is not None]
    parts = planned.parts()
    labels = Labels(parts, paths, cache_dir=options.cache_dir)
    sources, notes = [], []
    for source in parts:
        license_ = {}
        if options.write_model_card:
            try:
                license_ = read_license(source.directory)
            except (MolError, OSError) as error:
                notes.append(f"the license of {source.name} is not quoted in the card: {error}")
        sources.append(
            CardSource(
                name=labels.of(source),
                on_hub=hub_origin(source.directory, options.cache_dir) is not None,
                revision=source.revision,
                license=license_,
                role=source.role or _role(config, source.name),
                digest=source.digests.get(ADAPTER),
            )
        )
    recipe = config.source_text if config.source_text is not None else config.to_yaml()
    return Card(labels, tuple(sources), labels.clean(recipe), tuple(notes))


def card_text(card: Card, planned: PlannedMerge, *, plan_digest: str, version: str) -> str:
    """Write the card of a merge."""
    method = METHODS[planned.config.method]
    return model_card(
        method=method.name,
        method_title=method.title,
        method_url=method.url,
        sources=card.sources,
        recipe=card.recipe,
        dtypes=sorted({tensor.dtype for tensor in planned.plan.tensors}),
        tensors=planned.methods,
        sections={
            "Notes": _shown(card, card.remarks),
            "Copied from one source": _shown(card, planned.copied),
            "Not in this model": _shown(card, planned.dropped),
        },
        plan_digest=plan_digest,
        version=version,
    )


def _shown(card: Card, lines: Sequence[str]) -> list[str]:
    # The rest is only counted, and there may be very many.
    return [*map(card.labels.clean, lines[:LISTED]), *lines[LISTED:]]


def _role(config: MergeConfig, name: str) -> str:
    bases = {config.base_model, *(part.base_model for part in config.slices or ())}
    return "base" if any(base is not None and name in (base.name, str(base)) for base in bases) else ""
