"""Reads `models` and `slices`, and checks that they are what the method takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mol.config.auto_weights import Auto
from mol.config.document import Items, Location, Table, shown
from mol.config.method_spec import REQUIRED, MethodSpec
from mol.config.methods import weights_cancel
from mol.config.model_reference import ModelReference, may_be_one
from mol.config.parameters import Chain, ParameterMap
from mol.config.sources import SliceConfig, SourceConfig
from mol.errors import ConfigError
from mol.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def check_inputs(
    inputs: Inputs,
    spec: MethodSpec,
    base_model: ModelReference | None,
    parameters: ParameterMap,
    reader: ValueReader,
    *,
    weighs_base: bool,
    resolved: bool = False,
) -> None:
    """Check number of inputs, base, lengths of ranges, parameters that must be there and weights that cancel.

    Args:
        inputs: what was read; for a method whose base is an input like any other, an unlisted base is added.
        spec: the method.
        base_model: the recipe's base.
        parameters: the recipe's parameters.
        reader: collects the problems.
        weighs_base: whether the recipe itself gives a weight to models that have none of their own.
        resolved: whether names that differ are known to be different models.
    """
    if inputs.whole and spec.base == "input" and base_model is not None and base_model not in inputs.models():
        if not resolved and any(may_be_one(base_model, model) for model in inputs.models()):
            return  # checked again when their commits are known
        _add_base(inputs, spec, base_model, reader, weighs_base=weighs_base)
    for index, (part, location) in enumerate(zip(inputs.slices, inputs.locations, strict=True)):
        where = "" if inputs.whole else f"slice {index + 1}: "
        base = part.base_model or base_model
        listed = [source.model for source in part.sources]
        if spec.base == "required" and base is None:
            reader.problems.add(location, f"{where}{spec.name} needs `base_model`, the model it starts from")
            continue
        if (
            not resolved
            and base is not None
            and base not in listed
            and any(may_be_one(base, model) for model in listed)
        ):
            continue  # checked again when their commits are known
        if spec.starts_from(base) and not inputs.whole and base not in listed:
            # Models of one family have names alike: only what looks like a typing error is offered.
            alike = [str(model) for model in listed if _digits(str(model)) == _digits(str(base))]
            hint = suggestion(str(base), alike, cutoff=0.85)
            reader.problems.add(
                location, f"{where}the base, {base}, must be one of `sources`, with its `layer_range`{hint}"
            )
            continue
        _warn_of_repeated(listed, base if spec.starts_from(base) else None, where, reader)
        if listed == [base] and spec.base == "required" and spec.min_models == 2 and spec.max_models is None:
            reader.warnings.append(f"{where}no model next to the base, {base}: {spec.name} gives the base itself")
            continue
        if spec.base == "optional":
            count = sum(model != base for model in listed)
        else:
            count = len(listed) + (spec.base == "required" and base not in listed)
        if not _check_count(count, spec, location, where, base if base not in listed else None, reader):
            continue
        spans = [source.layer_range for source in part.sources if source.model == base]
        subtracts = spec.starts_from(base) and not spec.base_twice
        if subtracts and len(set(spans)) < len(spans):
            reader.problems.add(
                location, f"{where}the base, {base}, is listed twice; it is subtracted, so list it once"
            )
        if subtracts and all(model == base for model in listed):
            reader.problems.add(location, f"{where}{spec.name} needs a model in addition to the base, {base}")
        lengths = {source.layer_range[1] - source.layer_range[0] for source in part.sources if source.layer_range}
        if len(lengths) > 1:
            ranges = ", ".join(f"{source.model} {list(source.layer_range or ())}" for source in part.sources)
            reader.problems.add(location, f"{where}the layer ranges of a slice have equal length; found {ranges}")
        if inputs.parameters_sound:
            _check_parameters(part, location, where, spec, base, parameters, reader)


def _warn_of_repeated(
    listed: Sequence[ModelReference], base: ModelReference | None, where: str, reader: ValueReader
) -> None:
    """Warn of models that a slice lists more than once, which versions of mergekit take in different ways."""
    for model in dict.fromkeys(model for model in listed if model != base and listed.count(model) > 1):
        reader.warnings.append(
            f"{where}{model} is listed {listed.count(model)} times, and each counts; mergekit 0.1.5 refuses that, "
            "older versions take one of them"
        )


def _add_base(
    inputs: Inputs, spec: MethodSpec, base: ModelReference, reader: ValueReader, *, weighs_base: bool
) -> None:
    full = spec.max_models is not None and len(inputs.slices[0].sources) >= spec.max_models
    if not full and (weighs_base or "weight" not in spec.parameters):
        part = inputs.slices[0]
        inputs.slices[0] = SliceConfig((*part.sources, SourceConfig(base)), part.base_model, part.parameters)
        line = f"the base, {base}, is not among `models`: {spec.name} takes it as one more input"
        (reader.notes if weighs_base else reader.warnings).append(line)
        return
    way_out = "list it among `models`, or leave `base_model` out"
    if full:
        count = "one model" if spec.max_models == 1 else f"{spec.max_models} models"
        problem, way_out = f", and {spec.name} takes {count} only", "leave `base_model` out"
    else:
        problem = " and finds no weight for it"
    reader.problems.add(
        inputs.locations[0],
        f"`base_model` {base} is not among `models`: {spec.name} has no base, mergekit takes it as one more input"
        f"{problem}; {way_out}",
    )


def _digits(name: str) -> list[str]:
    return [character for character in name if character.isdecimal()]


def _check_count(
    count: int, spec: MethodSpec, location: Location, where: str, unlisted: ModelReference | None, reader: ValueReader
) -> bool:
    if spec.min_models <= count <= (spec.max_models or count):
        return True
    base = {"required": ", the base among them", "optional": " in addition to a base"}.get(spec.base, "")
    extra = f"; the base, {unlisted}, is not listed and counts too" if unlisted and spec.base == "required" else ""
    wanted = f"exactly {spec.min_models}" if spec.max_models == spec.min_models else f"at least {spec.min_models}"
    noun = "model" if spec.min_models == 1 else "models"
    reader.problems.add(location, f"{where}{spec.name} takes {wanted} {noun}{base}; found {count}{extra}")
    return False


def _check_parameters(
    part: SliceConfig,
    location: Location,
    where: str,
    spec: MethodSpec,
    base: ModelReference | None,
    parameters: ParameterMap,
    reader: ValueReader,
) -> None:
    weighted = [source for source in part.sources if spec.base == "input" or source.model != base]
    for parameter in spec.parameters.values():
        if parameter.default is not REQUIRED:
            continue
        if not parameter.per_model and not Chain(parameter.name, part.parameters, parameters).links:
            reader.problems.add(location, f"{where}{spec.name} needs the parameter `{parameter.name}`")
        for source in weighted if parameter.per_model else ():
            if not Chain(parameter.name, source.parameters, part.parameters, parameters).links:
                reader.problems.add(
                    location, f"{where}{source.model} has no `{parameter.name}`; give it one under its `parameters`"
                )
    if spec.divides:
        _check_sum(part, location, where, spec, weighted, parameters, reader)


def _check_sum(
    part: SliceConfig,
    location: Location,
    where: str,
    spec: MethodSpec,
    weighted: list[SourceConfig],
    parameters: ParameterMap,
    reader: ValueReader,
) -> None:
    """Refuse weights that sum to zero where they are divided by their sum; warn where the divisor is then 1."""
    parameter = spec.parameter("normalize")
    chain = Chain(parameter.name if parameter else "", part.parameters, parameters)
    normalize = chain.constant if chain.links else parameter.default if parameter else True
    weights = [Chain("weight", source.parameters, part.parameters, parameters).constant for source in weighted]
    numbers = [float(weight) for weight in weights if weight is not None]
    if normalize is True and numbers and len(numbers) == len(weights) and weights_cancel(numbers):
        if spec.base == "required":
            reader.warnings.append(
                f"{where}the weights {numbers} sum to zero: as in mergekit, `normalize: true` divides by 1 instead"
            )
            return
        dividing, way_out = "they are divided by their sum", "change them"
        if parameter:
            dividing = f"`{parameter.name}: true` divides by their sum"
            way_out = f"change them or set `{parameter.name}: false`"
        reader.problems.add(location, f"{where}the weights {numbers} sum to zero, and {dividing}; {way_out}")


def problem_of_auto(
    spec: MethodSpec, base: ModelReference | None, inputs: Inputs, parameters: ParameterMap
) -> str | None:
    """Return why models cannot be weighed by norms, None if they can or are not."""
    holders = [source.parameters for part in inputs.slices for source in part.sources]
    holders += [part.parameters for part in inputs.slices]
    elsewhere = [rule.value for holder in holders for rule in holder.get("weight", ())]
    rules = [rule.value for rule in parameters.get("weight", ())]
    if not any(isinstance(value, Auto) for value in (*elsewhere, *rules)):
        return None
    if elsewhere or len(rules) > 1:
        return "it gives all models their weights: write it once, in `parameters` of the recipe, and no other `weight`"
    if not inputs.whole:
        return "it weighs whole models, and the recipe cuts them into `slices`: give each source a `weight`"
    if not spec.starts_from(base):
        way_out = "add a `base_model`" if spec.base == "optional" else "such as task_arithmetic does"
        return f"it weighs models by their differences from a base, and {spec.name} starts from none; {way_out}"
    return None
