"""load_recipe: a recipe in any form to a checked MergeConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mol.config.merge_config import MergeConfig

if TYPE_CHECKING:
    from pathlib import Path


def load_recipe(recipe: MergeConfig | Mapping[str, Any] | str | Path) -> MergeConfig:
    """Read and check a recipe.

    Args:
        recipe: path of a YAML file in mergekit's grammar or in the flat form, its text (a `str` with a line break),
            the mapping that it holds, or a MergeConfig, which is returned as it is.

    Raises:
        ConfigError: lists everything that is wrong with the recipe, with lines.
        OSError: the file is missing or cannot be read.
    """
    if isinstance(recipe, MergeConfig):
        return recipe
    return MergeConfig.from_dict(recipe) if isinstance(recipe, Mapping) else MergeConfig.from_yaml(recipe)
