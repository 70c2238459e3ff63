"""ModuleConfig: the inputs of one module of models that have several, such as a vision tower and a text decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mol.config.auto_weights import Auto
from mol.config.document import Items, Table, shown
from mol.config.input_checks import check_inputs
from mol.config.inputs import Inputs, read_inputs
from mol.config.methods import method_named
from mol.config.parameters import ParameterMap, chained
from mol.config.sources import SliceConfig, SourceConfig, rename
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.config.method_spec import MethodSpec
    from mol.config.model_reference import ModelReference
    from mol.config.values import ValueReader

_KEYS = ("models", "slices", "parameters", "base_model", "merge_method")


class ModuleConfig(NamedTuple):
    """What a module is made of.

    Attributes:
        name: the module; "default" is every module that the recipe does not name.
        models: whole modules of models, as listed; None where it has slices.
        slices: ranges of its layers.
        base_model: the base of its slices that name none of their own; None means the recipe's.
        method: its method; None is the recipe's.
        parameters: stronger than the recipe's where the method is the recipe's, else all that there are.
    """

    name: str
    models: tuple[SourceConfig, ...] | None = None
    slices: tuple[SliceConfig, ...] | None = None
    base_model: ModelReference | None = None
    method: str | None = None
    parameters: ParameterMap = ParameterMap()

    def parts(self) -> tuple[SliceConfig, ...]:
        """Return its slices; models count as one."""
        return (SliceConfig(self.models),) if self.models is not None else self.slices or ()

    def over(self, parameters: ParameterMap, method: str) -> ParameterMap:
        """Return its parameters, then those of the recipe if they are of its method."""
        return self.parameters if self.method not in (None, method) else chained([self.parameters, parameters])

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as YAML holds it."""
        entry: dict[str, Any] = {}
        for key in ("models", "slices"):
            if (inputs := getattr(self, key)) is not None:
                entry[key] = [given.to_dict() for given in inputs]
        if self.method is not None:
            entry["merge_method"] = self.method
        if self.base_model is not None:
            entry["base_model"] = self.base_model.to_plain()
        if self.parameters:
            entry["parameters"] = self.parameters.to_dict()
        return entry

    def renamed(self, names: Mapping[ModelReference, ModelReference]) -> ModuleConfig:
        """Return the entry with other names of models."""
        return ModuleConfig(
            self.name,
            None if self.models is None else rename(SliceConfig(self.models), names).sources,
            None if self.slices is None else tuple(rename(part, names) for part in self.slices),
            None if self.base_model is None else names.get(self.base_model, self.base_model),
            self.method,
            self.parameters,
        )


def read_modules(
    recipe: Table, base_model: ModelReference | None, parameters: ParameterMap, reader: ValueReader, *, resolved: bool
) -> tuple[tuple[ModuleConfig, Inputs, MethodSpec | None], ...]:
    """Read the modules of a recipe, each with its inputs and its method.

    Args:
        recipe: the recipe.
        base_model: its base.
        parameters: its parameters.
        reader: collects the problems.
        resolved: whether names that differ are known to be different models.
    """
    value = recipe.get("modules")
    if value is None:
        return ()
    if not isinstance(value, Table) or not value:
        kind = "a list" if isinstance(value, Items) else "empty" if isinstance(value, Table) else shown(value)
        reader.problems.add(
            recipe.at("modules"), f"`modules` is a map from the names of modules to `models` or `slices`, not {kind}"
        )
        return ()
    found = []
    for name, entry in value.items():
        if not isinstance(entry, Table):
            reader.problems.add(value.at(name), f"`{name}` in `modules` is a map with `models`, not {shown(entry)}")
            continue
        found.append(_read(name, entry, base_model, parameters, reader, resolved=resolved))
    return tuple(found)


def _read(
    name: str,
    entry: Table,
    base_model: ModelReference | None,
    parameters: ParameterMap,
    recipe: ValueReader,
    *,
    resolved: bool,
) -> tuple[ModuleConfig, Inputs, MethodSpec | None]:
    reader = recipe.of_method(recipe.spec)
    reader.lenient = recipe.lenient
    reader.keys(entry, _KEYS, f"the module `{name}`")
    method = None
    if entry.get("merge_method") is not None:
        try:
            reader.spec = method_named(str(entry["merge_method"]))
            method = reader.spec.name
        except ConfigError as error:
            reader.problems.add(entry.at("merge_method"), str(error))
            reader.spec = None
    base = None
    if entry.get("base_model") is not None:
        base = reader.model(entry["base_model"], entry.at("base_model"))
    before = len(reader.problems)
    own = reader.parameters(entry.get("parameters"), entry.at("parameters"), of_model=False)
    sound = len(reader.problems) == before
    inputs = read_inputs(entry, reader, f"the module `{name}`")
    inputs.parameters_sound &= sound
    module = ModuleConfig(
        name,
        inputs.slices[0].sources if inputs.whole else None,
        None if inputs.whole else tuple(inputs.slices),
        base,
        method,
        own,
    )
    held = [own, *(part.parameters for part in inputs.slices)]
    held += [source.parameters for part in inputs.slices for source in part.sources]
    if any(isinstance(rule.value, Auto) for values in held for rule in values.get("weight", ())):
        reader.problems.add(
            entry.location, f"`weight: {{auto: ...}}` in the module `{name}`: it weighs whole models; write numbers"
        )
    if reader.spec and inputs.sound:
        levels = module.over(parameters, recipe.spec.name if recipe.spec else "")
        # The recipe's base says where the rest comes from; it is no input of what does not start from it.
        start = None if reader.spec.base == "input" else base or base_model
        check_inputs(inputs, start, levels, reader, resolved=resolved)
    return module, inputs, reader.spec
