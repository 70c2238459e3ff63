"""Recipes from YAML: a file or a text to a checked MergeConfig."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mol.config.merge_config import MergeConfig
from mol.config.yaml_source import read_yaml
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.config.document import Table

MAX_BYTES = 16 << 20
"""Largest recipe that is read; a bigger file is some other file."""


def load_recipe(path: str | Path) -> MergeConfig:
    """Read and check a recipe file.

    Args:
        path: a YAML file in mergekit's grammar or in the flat form.

    Raises:
        ConfigError: lists everything that is wrong with the recipe, with lines.
        OSError: the file is missing or cannot be read.
    """
    table, text = read_recipe_file(path)
    return MergeConfig.from_table(table, f"{path} is refused", text)


def parse_recipe(text: str, where: str = "recipe") -> MergeConfig:
    """Check a recipe given as YAML text.

    Args:
        text: the YAML.
        where: what problems shall call it, usually a file name.

    Raises:
        ConfigError: lists everything that is wrong with the recipe, with lines.
    """
    table, text = read_recipe_text(text, where)
    return MergeConfig.from_table(table, f"{where} is refused", text)


def parse_recipe_bytes(data: bytes, where: str) -> MergeConfig:
    """Check a recipe given as the bytes of its YAML.

    Raises:
        ConfigError: lists everything that is wrong with the recipe, with lines.
    """
    return parse_recipe(_decode(data, where), where)


def recipe_from_dict(recipe: Mapping[str, Any]) -> MergeConfig:
    """Check a recipe given as the mapping that its YAML would be.

    Raises:
        ConfigError: lists everything that is wrong with the recipe.
    """
    return MergeConfig.from_dict(recipe)


def read_recipe_file(path: str | Path) -> tuple[Table, str]:
    """Read a recipe file to its table and its text, without checking what it says.

    Raises:
        ConfigError: the file is too big, is not UTF-8, or is not the YAML of a map.
        OSError: the file is missing or cannot be read.
    """
    with Path(path).open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    return read_recipe_text(_decode(data, str(path)), str(path))


def _decode(data: bytes, where: str) -> str:
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{where}: more than {MAX_BYTES >> 20} MiB, too much for a recipe; give a YAML file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}:{line}: not UTF-8 text; give a YAML file") from error


def read_recipe_text(text: str, where: str) -> tuple[Table, str]:
    """Read YAML text to its table; the text is returned beside it.

    Raises:
        ConfigError: the text is not the YAML of a map.
    """
    return read_yaml(text, where), text
