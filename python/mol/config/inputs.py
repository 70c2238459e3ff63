"""Reads `models` and `slices`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mol.config.document import Items, Location, Table, shown
from mol.config.model_reference import ModelReference
from mol.config.sources import SliceConfig, SourceConfig
from mol.errors import ConfigError

if TYPE_CHECKING:
    from mol.config.parameters import ParameterMap
    from mol.config.values import ValueReader

_HINTS = {"lora": "write `model: NAME+ADAPTER`"}
_HINTS_WITHOUT_MODEL = _HINTS | {"name": "a model is named by `model`"}


@dataclass(slots=True)
class Inputs:
    """What was read of `models` or `slices`.

    Attributes:
        slices: the slices; `models` count as one.
        locations: where each slice stands.
        whole: whether the recipe has `models`.
        sound: whether every model and range was read, so that counting them makes sense.
        parameters_sound: whether every parameter was read, so that missing ones are really missing.
    """

    slices: list[SliceConfig] = field(default_factory=list)
    locations: list[Location] = field(default_factory=list)
    whole: bool = False
    sound: bool = True
    parameters_sound: bool = True

    def models(self) -> list[ModelReference]:
        """Return the models in order, each once."""
        return list(dict.fromkeys(source.model for part in self.slices for source in part.sources))


def read_inputs(recipe: Table, reader: ValueReader, what: str = "a recipe") -> Inputs:
    """Read the inputs of a recipe, or of a module of one, in mergekit's grammar."""
    return _InputReader(reader).read(recipe, what)


class _InputReader:
    def __init__(self, reader: ValueReader) -> None:
        self._reader = reader
        self._inputs = Inputs()

    def read(self, recipe: Table, what: str) -> Inputs:
        inputs = self._inputs
        models, slices = recipe.get("models"), recipe.get("slices")
        if (models is None) == (slices is None):
            found, location = ("neither", recipe.location) if models is None else ("both", recipe.at("slices"))
            self._refuse(location, f"{what} has either `models` or `slices`; here is {found}")
        if models is not None:
            inputs.slices.append(SliceConfig(self._sources(models, recipe.at("models"), "models", ranged=False)))
            inputs.locations.append(recipe.at("models"))
            inputs.whole = True
        elif slices is not None:
            for entry, location in self._entries(slices, recipe.at("slices"), "slices"):
                inputs.slices.append(self._slice(entry))
                inputs.locations.append(location)
        return inputs

    def _refuse(self, location: Location, message: str) -> None:
        self._reader.problems.add(location, message)
        self._inputs.sound = False

    def _entries(self, value: object, location: Location, name: str) -> list[tuple[Table, Location]]:
        if not isinstance(value, Items):
            kind = "a map" if isinstance(value, Table) else shown(value)
            self._refuse(location, f"`{name}` is a list, its entries begin with `- `; here is {kind}")
            return []
        if not value:
            self._refuse(location, f"`{name}` is empty")
        entries: list[tuple[Table, Location]] = []
        for entry, where in zip(value, value.locations, strict=True):
            if isinstance(entry, Table):
                entries.append((entry, where))
            else:
                kind = "a list" if isinstance(entry, Items) else shown(entry)
                self._refuse(where, f"an entry of `{name}` is a map, not {kind}")
        return entries

    def _keys(self, entry: Table, known: tuple[str, ...], what: str, hints: dict[str, str]) -> None:
        if not self._reader.keys(entry, known, what, hints):
            self._inputs.parameters_sound = False  # the word may be a parameter at the wrong level

    def _parameters(self, entry: Table, *, of_model: bool) -> ParameterMap:
        before = len(self._reader.problems)
        read = self._reader.parameters(entry.get("parameters"), entry.at("parameters"), of_model=of_model)
        if len(self._reader.problems) > before:
            self._inputs.parameters_sound = False
        return read

    def _slice(self, entry: Table) -> SliceConfig:
        known = ("sources", "base_model", "parameters", "residual_weight", "merge_method")
        hints = {"model": "the inputs of a slice stand under `sources`", "layer_range": "each of `sources` has its own"}
        self._keys(entry, known, "a slice", hints)
        if "residual_weight" in entry:
            self._reader.notes.append("`residual_weight` has no effect: mergekit reads it and never uses it")
        if entry.get("merge_method") is not None:
            self._method(entry)
        base_model = None
        if entry.get("base_model") is not None:
            base_model = self._reader.model(entry["base_model"], entry.at("base_model"))
            self._inputs.sound &= base_model is not None
        parameters = self._parameters(entry, of_model=False)
        if entry.get("sources") is None:
            self._refuse(entry.location, "a slice needs `sources`, a list of `{model, layer_range}`")
            return SliceConfig((), base_model, parameters)
        sources = self._sources(entry["sources"], entry.at("sources"), "sources", ranged=True)
        return SliceConfig(sources, base_model, parameters)

    def _method(self, entry: Table) -> None:
        word = entry["merge_method"]
        recipe = self._reader.recipe
        if recipe is not None and word == recipe.get("merge_method"):
            self._reader.notes.append("`merge_method` in a slice has no effect in mergekit, and none here")
        elif self._reader.lenient:
            where = f"in a slice, {shown(word)},"
            self._reader.ignore("merge_method", where, entry.at("merge_method"), ": a recipe has one method")
        else:
            self._reader.problems.add(
                entry.at("merge_method"),
                f"`merge_method` in a slice, {shown(word)}: mergekit ignores it; a recipe has one method",
            )

    def _sources(self, value: object, location: Location, name: str, *, ranged: bool) -> tuple[SourceConfig, ...]:
        read = [self._source(entry, where, name, ranged) for entry, where in self._entries(value, location, name)]
        return tuple(source for source in read if source is not None)

    def _source(self, entry: Table, location: Location, name: str, ranged: bool) -> SourceConfig | None:
        needed = ("model", "layer_range") if ranged else ("model",)
        hints = _HINTS_WITHOUT_MODEL if entry.get("model") is None else _HINTS
        self._keys(entry, ("model", "layer_range", "parameters", "revision"), f"an entry of `{name}`", hints)
        parameters = self._parameters(entry, of_model=True)
        missing = [key for key in needed if entry.get(key) is None]
        for key in missing:
            self._refuse(location, f"an entry of `{name}` needs `{key}`")
        layers = model = None
        if entry.get("layer_range") is not None:
            layers = self._reader.layer_range(entry["layer_range"], entry.at("layer_range"))
            self._inputs.sound &= layers is not None
            if not ranged:
                self._reader.notes.append(
                    "`layer_range` in an entry of `models` has no effect in mergekit, and none here: whole models are "
                    "merged; layers are chosen by `slices`"
                )
        if "model" not in missing:
            model = self._reader.model(self._at_revision(entry, name), entry.at("model"))
            self._inputs.sound &= model is not None
        return None if model is None else SourceConfig(model, layers, parameters)

    def _at_revision(self, entry: Table, name: str) -> object:
        """Return the model of an entry, at the `revision` that stands next to it."""
        model, revision = entry["model"], entry.get("revision")
        if revision in (None, "main"):
            if revision is not None:
                self._reader.notes.append(
                    f"`revision` in an entry of `{name}` has no effect in mergekit, and none here"
                )
            return model
        try:
            reference = ModelReference.parse(model)
        except ConfigError:
            return model  # refused where it is read
        where, location = f"in an entry of `{name}`", entry.at("revision")
        if not isinstance(revision, str):
            self._refuse(location, f"`revision` {where} must be text, not {shown(revision)}; put it in quotes")
        elif reference.is_directory():
            self._reader.ignore("revision", where, location, f": {reference.name} is a directory")
        elif reference.revision not in (None, revision):
            self._refuse(location, f"`revision` {where} is {revision}, and the model is {reference}; give one of them")
        else:
            self._reader.warnings.append(
                f"`revision` {where}: mergekit ignores it and takes {reference}; here {reference.name} is taken at "
                f"{revision}, as `model: NAME@REVISION` means in both"
            )
            return replace(reference, revision=revision)
        return reference
