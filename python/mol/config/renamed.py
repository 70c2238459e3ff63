"""Other names for the models of a recipe, once it is known which names are one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mol.config.document import from_python
from mol.config.model_reference import ModelReference
from mol.config.sources import SliceConfig, rename

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.config.checked_recipe import CheckedRecipe
    from mol.config.document import Table


def rename_models(config: CheckedRecipe, table: Table, names: Mapping[ModelReference, ModelReference]) -> None:
    """Replace names of models in the map that a recipe is written as."""
    if config.base_model is not None and config.base_model in names:
        table["base_model"] = names[config.base_model]
    if config.tokenizer is not None:
        table["tokenizer"] = from_python(config.tokenizer.renamed(names))
    elif isinstance(config.tokenizer_source, ModelReference) and config.tokenizer_source in names:
        table["tokenizer_source"] = names[config.tokenizer_source]
    if config.models is not None:
        table["models"] = from_python(rename(SliceConfig(config.models), names).sources)
    if config.slices is not None:
        table["slices"] = from_python([rename(part, names) for part in config.slices])
    if config.modules:
        table["modules"] = from_python({module.name: module.renamed(names).to_dict() for module in config.modules})
    if config.rules:
        table["rules"] = from_python([rule.renamed(names) for rule in config.rules])
