"""Recipes: what shall be merged and how, checked before anything is opened."""

from typing import TYPE_CHECKING

from mol.config.merge_config import MergeConfig as MergeConfig
from mol.config.merge_config import ModelReference as ModelReference
from mol.config.merge_config import ParameterMap as ParameterMap
from mol.config.merge_config import Rule as Rule
from mol.config.merge_config import SliceConfig as SliceConfig
from mol.config.merge_config import SourceConfig as SourceConfig
from mol.config.recipe import load_recipe as load_recipe

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        from mol.later import missing

        raise missing("mol.config", name)
