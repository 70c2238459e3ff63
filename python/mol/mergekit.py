"""The names that a notebook imports from mergekit, over the same code as the rest of mol."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mol.config import MergeConfig, load_recipe
from mol.config.document import Table, from_python
from mol.merge import options as _options
from mol.merge import run as _run
from mol.merge.option_names import read_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Self

    from mol.merge.run import MergeReport

__all__ = ["MergeConfiguration", "MergeOptions", "run_merge"]


class MergeConfiguration(MergeConfig):
    """A checked recipe, built from what its YAML holds; mergekit's defaults hold."""

    def __init__(self, **recipe: Any) -> None:  # noqa: ANN401 - the keys of a recipe
        """Check a recipe given by its keys: `MergeConfiguration(merge_method="linear", models=[...])`.

        Raises:
            ConfigError: lists everything that is wrong with the recipe.
        """
        self.__dict__.update(self.model_validate(recipe).__dict__)

    @classmethod
    def model_validate(cls, obj: Any) -> Self:  # noqa: ANN401 - a mapping or a recipe
        """Check a recipe given as the mapping that `yaml.safe_load` returns.

        Raises:
            ConfigError: lists everything that is wrong with the recipe.
        """
        if isinstance(obj, MergeConfig):
            config = cls.__new__(cls)
            config.__dict__.update(obj.__dict__)
            return config
        if not isinstance(obj, Mapping):
            return cls.from_dict(obj)  # which says what is wanted
        table = from_python(obj)
        _mark_holders(table, obj)
        return cls.from_dict(table)


class MergeOptions(_options.MergeOptions):
    """Options of a run under mergekit's names or mol's; one that changes nothing here is logged in one line."""

    def __init__(self, **given: Any) -> None:  # noqa: ANN401 - options of any name
        """Read the options.

        Raises:
            ConfigError: an option does not hold, or asks for pickle files.
            TypeError: there is no such option.
        """
        super().__init__(**read_options(given))


def run_merge(
    merge_config: MergeConfig | Mapping[str, Any] | str | Path,
    out_path: str | Path,
    options: _options.MergeOptions | None = None,
    config_source: str | None = None,
) -> MergeReport:
    """Merge models into a new directory, as `mol.run_merge`.

    Args:
        merge_config: the recipe.
        out_path: the output directory.
        options: how the merge runs.
        config_source: the YAML that is kept with the output; the recipe written anew if None.

    Raises:
        MolError: see `mol.run_merge`.
        OSError: see `mol.run_merge`.
    """
    if config_source is not None:
        config = load_recipe(merge_config)
        merge_config = copy.copy(config)
        object.__setattr__(merge_config, "source_text", config_source)
    return _run.run_merge(merge_config, out_path, options)


def _mark_holders(table: Table, recipe: Mapping[str, Any]) -> None:
    """Mark the keys whose values other keys have too: anchors, of which a loaded YAML keeps the sharing alone."""
    parts = {str(key): set(_marks(value)) for key, value in recipe.items()}
    for key, marks in parts.items():
        if any(not marks.isdisjoint(other) for word, other in parts.items() if word != key):
            table.anchored.add(key)


def _marks(value: object) -> Iterator[object]:
    """Yield what distinguishes a value from another: the identity of containers, numbers and texts themselves."""
    if isinstance(value, Mapping):
        yield id(value)
        for item in value.values():
            yield from _marks(item)
    elif isinstance(value, (list, tuple)):
        yield id(value)
        for item in value:
            yield from _marks(item)
    elif isinstance(value, (str, float, int)) and not isinstance(value, bool):
        yield value
