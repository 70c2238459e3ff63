"""MergeConfig: reads recipes of all forms, derives one from another, writes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import yaml

from mol.config.average import is_average
from mol.config.checked_recipe import CheckedRecipe
from mol.config.document import Location, Problems, Table, from_python
from mol.config.fields import RecipeKeys, read_fields
from mol.config.method_spec import Scalar
from mol.config.methods import METHODS
from mol.config.model_reference import ModelReference, may_be_one
from mol.config.parameters import ParameterMap, Rule
from mol.config.renamed import rename_models
from mol.config.sources import SliceConfig, SourceConfig
from mol.config.stages import Document, arrange, named_tables, refuse_idle
from mol.config.sweep import plain, read_each
from mol.config.yaml_source import read_source
from mol.dtypes import DTYPE_NAMES
from mol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self, Unpack

    from mol.config.modules import ModuleConfig
    from mol.config.rules import RuleConfig

    _Config = TypeVar("_Config", bound="MergeConfig")

__all__ = ["MergeConfig", "ModelReference", "ParameterMap", "Rule", "Scalar", "SliceConfig", "SourceConfig"]


class Swept(NamedTuple):
    """One result of a sweep: what its parameters are, as YAML holds them, and its recipe."""

    values: Mapping[str, Any]
    config: MergeConfig


@dataclass(frozen=True, init=False)
class MergeConfig(CheckedRecipe):
    """A recipe that has been read and checked.

    Two recipes are equal when they ask for the same; `notes` and `source_text` do not count.

    Attributes:
        stages: recipes whose results this one takes as models, by the names that it calls them; each after those that
            it needs itself.
        sweep: the recipes of the results, by their directories in the output, where the recipe has several values for
            a parameter; what else is said here is that of the first.

    The others are those of `CheckedRecipe`.
    """

    stages: Mapping[str, MergeConfig] = field(hash=False)
    sweep: Mapping[str, Swept] = field(init=False, hash=False)
    _given: Mapping[str, Any] = field(init=False, compare=False, repr=False)

    def __init__(
        self,
        method: str | None = None,
        models: Sequence[str | Path | ModelReference | Mapping[str, Any] | SourceConfig] | None = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        notes: Sequence[str] = (),
        source_text: str | None = None,
        **keys: Unpack[RecipeKeys],
    ) -> None:
        """Check a recipe given in Python: `t` defaults to 0.5, `density` to 0.8, `layer_alignment` to "auto".

        Args:
            method: name of the merge method; `merge_method=` is the same.
            models: names of models, or entries as YAML has them.
            parameters: values by parameter, as YAML has them; `weights` is a list or a map from model to weight.
            notes: lines to keep from another recipe.
            source_text: the YAML that the recipe was made from.
            **keys: any other key of a recipe: `base_model`, `slices`, `layer_range`, `dtype`, `output_path`, ...

        Raises:
            ConfigError: lists everything that is wrong with the recipe.
        """
        stages = keys.pop("stages", None) or {}
        modules = keys.get("modules")
        checked = isinstance(modules, tuple) and bool(modules)
        if isinstance(modules, tuple):
            keys["modules"] = {module.name: module.to_dict() for module in modules} or None
        given = {"method": method, "models": models, "parameters": parameters, **keys}
        table = from_python({key: value for key, value in given.items() if value is not None})
        others = {name: _as_config(stage) for name, stage in stages.items()}
        if "sweep" in table:

            def make(variant: Table) -> MergeConfig:
                config = object.__new__(type(self))
                config._fill(read_fields(variant, "invalid recipe", flat=True, stages=others), None, notes)
                return self._take_stages([*others.items(), (None, config)], "invalid recipe") if others else config

            given = {
                **plain(table),
                **({"stages": {name: stage.to_dict() for name, stage in others.items()}} if others else {}),
            }
            self._fill_swept(read_each(table, make, "invalid recipe"), given, source_text)
            return
        # The parts of a recipe that was checked before (dataclasses.replace) have their defaults already.
        parts = [*_listed(models), *_listed(keys.get("slices"))]
        fresh = not (parts or checked) or any(not isinstance(part, (SourceConfig, SliceConfig)) for part in parts)
        read = read_fields(table, "invalid recipe", flat=True, defaults=fresh, stages=others)
        self._fill(read, source_text, notes)
        if others:
            self._take_stages([*others.items(), (None, self)], "invalid recipe")

    def _fill(self, read: Mapping[str, Any], source_text: str | None, notes: Sequence[str] = ()) -> None:
        kept = tuple(dict.fromkeys((*notes, *read["notes"])))
        self.__dict__.update(read, stages={}, sweep={}, notes=kept, source_text=source_text, _chains={})

    def _fill_swept(
        self,
        read: Mapping[str, tuple[Mapping[str, Any], MergeConfig]],
        given: Mapping[str, Any],
        source_text: str | None,
    ) -> None:
        """Take the recipes of a `sweep`, by directory; `given` is the recipe that has it."""
        found = {name: Swept(values, config) for name, (values, config) in read.items()}
        configs = [swept.config for swept in found.values()]
        self.__dict__.update(configs[0].__dict__, sweep=found, source_text=source_text, _given=given, _chains={})
        for word in ("notes", "warnings"):
            lines = dict.fromkeys(line for config in configs for line in getattr(config, word))
            object.__setattr__(self, word, tuple(lines))
        locations: dict[ModelReference, str] = {}
        for config in reversed(configs):
            locations.update(config.locations)
        object.__setattr__(self, "locations", locations)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the chains, which hold functions and are made again when needed."""
        return {**self.__dict__, "_chains": {}}

    @classmethod
    def from_dict(cls, recipe: Mapping[str, Any]) -> Self:
        """Check a recipe given as the mapping that its YAML would be; which defaults hold is seen from its form.

        Raises:
            ConfigError: lists everything that is wrong with the recipe.
        """
        if not isinstance(recipe, Mapping):
            raise ConfigError(f"a recipe is a map of keys such as `merge_method`, not {type(recipe).__name__}")
        return cls._checked([recipe if isinstance(recipe, Table) else from_python(recipe)], "invalid recipe")

    @classmethod
    def from_yaml(cls, source: str | Path | bytes, where: str | None = None) -> Self:
        """Read and check a recipe in mergekit's grammar or in the flat form, of one document or several.

        Args:
            source: a file's path, its bytes, or YAML text (a `str` with a line break).
            where: what problems shall call it; the path, or "recipe", if None.

        Raises:
            ConfigError: lists everything that is wrong with the recipe, with lines.
            OSError: the file is missing or cannot be read.
        """
        tables, text, where = read_source(source, where)
        return cls._checked(tables, f"invalid recipe {where}", text)

    @classmethod
    def _checked(cls, tables: Sequence[Table], header: str, source_text: str | None = None) -> Self:
        problems = Problems()
        named = [pair for table in tables for pair in named_tables(table, problems, alone=len(tables) == 1)]
        swept = [number for number, (_, table) in enumerate(named) if table.get("sweep") is not None]
        for number in swept[1:]:
            problems.add(named[number][1].at("sweep"), "`sweep` in a second document; one of them has it, for all")
        problems.raise_any(header)
        if swept:
            config = cls._of_sweep(named, swept[0], header, source_text)
        else:
            config = cls._of_documents(named, header, source_text)
        refuse_idle(tables, named, config.stages, problems)
        problems.raise_any(header)
        return config

    @classmethod
    def _of_sweep(
        cls, named: Sequence[tuple[str | None, Table]], number: int, header: str, source_text: str | None
    ) -> Self:
        """Read documents of which one has a `sweep`: all of them for each of the recipes that it lists."""
        name, table = named[number]

        def make(variant: Table) -> MergeConfig:
            return cls._of_documents([*named[:number], (name, variant), *named[number + 1 :]], header)

        config = cls.__new__(cls)
        found = read_each(table, make, header)
        stages = next(iter(found.values()))[1].stages
        # The result is the one without a name, or the one that no other needs.
        end = min(range(len(named)), key=lambda i: (named[i][0] is not None, named[i][0] in stages))
        given = plain(named[end][1])
        if len(named) > 1:
            given["stages"] = {str(word): plain(other) for i, (word, other) in enumerate(named) if i != end}
        config._fill_swept(found, given, source_text)
        return config

    @classmethod
    def _of_documents(
        cls, named: Sequence[tuple[str | None, Table]], header: str, source_text: str | None = None
    ) -> Self:
        read, listed = [], list[str]()
        names = [str(name) for name, _ in named if len(named) > 1]
        for name, table in named:
            config = cls.__new__(cls)
            try:
                # An average is written out, so that what is quoted later names its checkpoints.
                text = None if is_average(table) else source_text
                config._fill(read_fields(table, header, stages=names), text)
            except ConfigError as error:  # the problems of all documents are listed
                if len(named) == 1:
                    raise
                listed += error.problems or [str(error)]
            read.append((name, config))
        if listed:
            raise ConfigError.listing(header, listed)
        if len(read) == 1:
            return read[0][1]
        return cls._take_stages(read, header, [table.at("name") for _, table in named])

    @staticmethod
    def _take_stages(
        read: Sequence[tuple[str | None, _Config]], header: str, locations: Sequence[Location] | None = None
    ) -> _Config:
        """Attach the stages to the document of the result."""
        problems = Problems()
        notes: list[str] = []
        found = locations or [Location(name or "") for name, _ in read]
        order, result = arrange(
            [
                Document(name, location, config.needed_models())
                for (name, config), location in zip(read, found, strict=True)
            ],
            problems,
            notes,
        )
        problems.raise_any(header)
        config = read[result][1]
        stages = {str(read[number][0]): read[number][1] for number in order}
        object.__setattr__(config, "stages", stages)
        object.__setattr__(config, "notes", tuple(dict.fromkeys((*config.notes, *notes))))
        return config

    def with_one_name_each(self, names: Mapping[ModelReference, ModelReference]) -> MergeConfig:
        """Return the recipe with every model under one name, checked again now that names that differ are two models.

        Args:
            names: for references that resolved to the same model as another, that other.

        Raises:
            ConfigError: lists everything that is wrong with the recipe.
        """
        references = self.model_references()
        if not names and not any(may_be_one(a, b) for a, b in itertools.combinations(references, 2)):
            return self
        table = from_python(self.to_dict())
        rename_models(self, table, names)
        config = object.__new__(type(self))
        read = read_fields(table, "invalid recipe", flat=False, resolved=True, stages=self.stages)
        config._fill(read, self.source_text)
        remarks = (f"`{name}` is the same commit as `{first}`: they are one model" for name, first in names.items())
        object.__setattr__(config, "notes", tuple(dict.fromkeys((*self.notes, *remarks))))
        object.__setattr__(config, "warnings", self.warnings)
        object.__setattr__(config, "locations", self.locations)
        object.__setattr__(config, "stages", self.stages)
        return config

    def with_weights(self, weights: Mapping[ModelReference, float], note: str) -> MergeConfig:
        """Return the recipe with a weight for each of its models instead of one that is to be found.

        Args:
            weights: by model; the base has none.
            note: a line that says what they are.
        """
        sources = tuple(
            source._replace(parameters=ParameterMap({**source.parameters, "weight": (Rule(weights[source.model]),)}))
            if source.model in weights
            else source
            for source in self.models or ()
        )
        rest = ParameterMap({name: rules for name, rules in self.parameters.items() if name != "weight"})
        return self._derived(models=sources, parameters=rest, notes=(*self.notes, note))

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe in mergekit's grammar; `from_dict` reads it back to an equal recipe.

        One with a `sweep` is returned as it was given.
        """
        if self.sweep:
            return dict(self._given)
        recipe: dict[str, Any] = {"merge_method": self.method}
        for word, entries in (("models", self.models), ("slices", self.slices)):
            if entries is not None:
                recipe[word] = [entry.to_dict() for entry in entries]
        if self.modules:
            recipe["modules"] = {module.name: module.to_dict() for module in self.modules}
        if self.base_model is not None:
            recipe["base_model"] = self.base_model.to_plain()
        if self.parameters:
            recipe["parameters"] = self.parameters.to_dict()
        if self.rules:
            recipe["rules"] = [rule.to_dict() for rule in self.rules]
        for key, dtype in (("dtype", self.dtype), ("out_dtype", self.out_dtype)):
            if dtype is not None:
                recipe[key] = DTYPE_NAMES[dtype]
        if self.tokenizer is not None:
            recipe["tokenizer"] = self.tokenizer.to_dict()
        elif isinstance(self.tokenizer_source, ModelReference):
            recipe["tokenizer_source"] = self.tokenizer_source.to_plain()
        elif self.tokenizer_source is not None:
            recipe["tokenizer_source"] = self.tokenizer_source
        if self.chat_template is not None:
            recipe["chat_template"] = self.chat_template
        if self.precision != "exact":
            recipe["precision"] = self.precision
        recipe["layer_alignment"] = self.layer_alignment
        if self.output_path is not None:
            recipe["output_path"] = self.output_path
        recipe.update({key: True for key in ("trust_remote_code", "allow_crimes") if getattr(self, key)})
        if self.stages:
            recipe["stages"] = {name: stage.to_dict() for name, stage in self.stages.items()}
        return recipe

    def to_yaml(self) -> str:
        """Return the recipe as YAML in mergekit's grammar."""
        # No folding: a path stays on one line, so that the card can find and shorten it.
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=1 << 31)

    def under_rule(self, rule: RuleConfig) -> MergeConfig:
        """Return the recipe for the tensors that one of its rules has another method for."""
        own = rule.method is not None and rule.method != self.method
        method = rule.method or self.method
        base = rule.base_model or self.base_model

        def part(given: SliceConfig) -> SliceConfig:
            start = rule.base_model or given.base_model or base
            return rule.inputs(given, None if METHODS[method].base == "input" else start, own=own)

        return self._derived(
            method=method,
            models=None if self.models is None else part(SliceConfig(self.models)).sources,
            slices=None if self.slices is None else tuple(map(part, self.slices)),
            base_model=base,
            parameters=rule.over(self.parameters, own=own),
            rules=(),
        )

    def of_module(self, module: ModuleConfig) -> MergeConfig:
        """Return the recipe for one of its modules."""
        return self._derived(
            method=module.method or self.method,
            models=module.models,
            slices=module.slices,
            modules=(),
            base_model=module.base_model or self.base_model,
            parameters=module.over(self.parameters, self.method),
        )

    def _derived(self, **fields: object) -> MergeConfig:
        config = object.__new__(type(self))
        config.__dict__.update(self.__dict__, **fields, _chains={})
        return config

    def is_stage(self, reference: ModelReference) -> bool:
        """Return whether a model is the result of one of the recipe's stages."""
        return reference.revision is None and reference.name in self.stages

    def documents(self) -> Iterator[MergeConfig]:
        """Yield the stages and the recipe itself, and those of every value of its sweep."""
        for whole in (self, *(swept.config for swept in self.sweep.values())):
            yield from (*whole.stages.values(), whole)

    def inputs(self) -> tuple[ModelReference, ...]:
        """Return every model that is read, of the recipe and of its stages, once."""
        named = [reference for document in self.documents() for reference in document.model_references()]
        return tuple(dict.fromkeys(reference for reference in named if not self.is_stage(reference)))


def _as_config(stage: object) -> MergeConfig:
    if not isinstance(stage, (MergeConfig, Mapping)):
        raise ConfigError(f"a stage is a recipe, a map of keys such as `merge_method`, not {type(stage).__name__}")
    config = stage if isinstance(stage, MergeConfig) else MergeConfig.from_dict(stage)
    if config.sweep:
        raise ConfigError("a stage with a `sweep` is several models; give `MergeConfig.from_dict` the whole recipe")
    return config


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, (list, tuple)) else ()
