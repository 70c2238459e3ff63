"""Reads `rules`, and checks each as the recipe that it is for the tensors it takes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, NamedTuple

from mol.config.document import Items, Location, Table, shown
from mol.config.input_checks import check_inputs
from mol.config.inputs import Inputs
from mol.config.methods import METHODS, method_named
from mol.config.parameters import ParameterMap, auto_of
from mol.config.rules import RuleConfig
from mol.config.sources import SourceConfig
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.config.method_spec import MethodSpec
    from mol.config.model_reference import ModelReference
    from mol.config.values import ValueReader

_OF_METHOD: Final = ("merge_method", "models", "base_model", "parameters")
_HINTS: Final = {
    "method": "write `merge_method`",
    "model": "write `copy: MODEL`, or `models` for the inputs of a method",
    "value": "write `parameters`",
}


class Part(NamedTuple):
    """What rules may find a tensor in: the inputs of a recipe, or of one of its modules.

    Attributes:
        inputs: models or slices.
        spec: the method.
        base: the base, if it is not the recipe's.
        parameters: those of the recipe and of the module.
        alone: there is no other.
    """

    inputs: Inputs
    spec: MethodSpec | None
    base: ModelReference | None
    parameters: ParameterMap
    alone: bool


def read_rules(
    recipe: Table, parts: Sequence[Part], base_model: ModelReference | None, reader: ValueReader, *, resolved: bool
) -> tuple[RuleConfig, ...]:
    """Read the rules of a recipe whose inputs are known.

    Args:
        recipe: the recipe.
        parts: its models or slices, of each module if it has several.
        base_model: its base.
        reader: collects the problems.
        resolved: whether names that differ are known to be different models.
    """
    value = recipe.get("rules")
    if value is None or value == []:
        return ()
    if not isinstance(value, Items):
        kind = "a map" if isinstance(value, Table) else shown(value)
        reader.problems.add(recipe.at("rules"), f"`rules` is a list of `{{filter, ...}}` maps, not {kind}")
        return ()
    rules = []
    for entry, location in zip(value, value.locations, strict=True):
        if not isinstance(entry, Table):
            reader.problems.add(location, f"an entry of `rules` is a map, not {shown(entry)}")
            continue
        before = len(reader.problems)
        known = [model for part in parts for model in (*part.inputs.models(), part.base)]
        rule = _read_rule(entry, [model for model in (*known, base_model) if model is not None], reader)
        for part in parts:
            if rule.copy is None and len(reader.problems) == before and part.inputs.sound:
                _check(rule, location, part, base_model, reader, resolved=resolved)
        rules.append(rule)
    for first, second in itertools.combinations(enumerate(rules, 1), 2):
        if first[1].filter in (None, second[1].filter):
            reader.notes.append(
                f"rule {second[0]} ({second[1]}) is never used: rule {first[0]} takes the same tensors before it"
            )
    return tuple(rules)


def _read_rule(entry: Table, known: Sequence[ModelReference], recipe: ValueReader) -> RuleConfig:
    problems = recipe.problems
    reader = recipe.of_method(recipe.spec)
    method = None if entry.get("merge_method") is None else _method(entry, reader)
    reader.keys(entry, ("filter", "copy", *_OF_METHOD), "an entry of `rules`", _HINTS)
    _, text = reader.filter(entry)
    if entry.get("copy") is not None:
        for word in _OF_METHOD:
            if entry.get(word) is not None:
                problems.add(entry.at(word), f"`{word}` next to `copy`: a rule copies one model, or has a method")
        return RuleConfig(text, copy=_model(entry["copy"], entry.at("copy"), "copy", known, reader))
    if all(entry.get(word) is None for word in ("merge_method", "models", "parameters")):
        problems.add(entry.location, "a rule needs `copy: MODEL`, `merge_method` or `parameters`")
    models = None
    if entry.get("models") is not None:
        models = _models(entry["models"], entry.at("models"), known, reader)
    base = None
    if entry.get("base_model") is not None:
        base = _model(entry["base_model"], entry.at("base_model"), "base_model", known, reader)
    values = reader.parameters(entry.get("parameters"), entry.at("parameters"), of_model=False)
    if any(map(auto_of, [values, *(source.parameters for source in models or ())])):
        problems.add(
            entry.location, "`weight: {auto: ...}` weighs whole models: it belongs in the recipe's `parameters`"
        )
    return RuleConfig(text, None, method, models, base, values)


def _method(entry: Table, reader: ValueReader) -> str | None:
    word = entry["merge_method"]
    if not isinstance(word, str):
        reader.problems.add(entry.at("merge_method"), f"`merge_method` is the name of a method, not {shown(word)}")
        return None
    try:
        reader.spec = method_named(word)
    except ConfigError as error:
        reader.problems.add(entry.at("merge_method"), str(error))
        reader.spec = None
        return None
    return word


def _models(
    value: object, location: Location, known: Sequence[ModelReference], reader: ValueReader
) -> tuple[SourceConfig, ...]:
    if not isinstance(value, Items) or not value:
        reader.problems.add(location, f"`models` of a rule is a list of models of the recipe, not {shown(value)}")
        return ()
    found: dict[ModelReference, SourceConfig] = {}
    for entry, where in zip(value, value.locations, strict=True):
        table = entry
        if not isinstance(entry, Table):
            table = Table(where)
            table.put("model", entry, where)
        reader.keys(table, ("model", "parameters"), "an entry of `models` of a rule")
        model = _model(table.get("model"), table.at("model"), "models", known, reader)
        parameters = reader.parameters(table.get("parameters"), table.at("parameters"), of_model=True)
        if model in found:
            reader.problems.add(where, f"{model} is listed twice in a rule")
        if model is not None:
            found[model] = SourceConfig(model, None, parameters)
    return tuple(found.values())


def _model(
    value: object, location: Location, word: str, known: Sequence[ModelReference], reader: ValueReader
) -> ModelReference | None:
    model = reader.model(value, location)
    if model is None or model in known:
        return model
    listed = ", ".join(map(str, dict.fromkeys(known)))
    reader.problems.add(location, f"`{word}` of a rule names {model}, which is no input of the recipe; it has {listed}")
    return None


def _check(
    rule: RuleConfig,
    location: Location,
    part: Part,
    base_model: ModelReference | None,
    reader: ValueReader,
    *,
    resolved: bool,
) -> None:
    """Check inputs, base and parameters of a rule as those of a recipe; where a slice lacks some, the plan does."""
    own = rule.method is not None and (part.spec is None or rule.method != part.spec.name)
    checker = reader.of_method(METHODS[rule.method] if rule.method is not None else part.spec)
    if checker.spec is None:
        return
    inputs, listed = part.inputs, {source.model for source in rule.models or ()}
    slices = [
        given
        for given in inputs.slices
        if (part.alone and inputs.whole) or listed.issubset(source.model for source in given.sources)
    ]
    # What takes its base for an input like any other takes the models that are listed.
    base = None if checker.spec.base == "input" else rule.base_model or part.base or base_model
    found = Inputs([], [location] * len(slices), inputs.whole, parameters_sound=inputs.parameters_sound)
    for given in slices:
        start = None if checker.spec.base == "input" else rule.base_model or given.base_model or base
        found.slices.append(rule.inputs(given, start, own=own))
    check_inputs(found, base, rule.over(part.parameters, own=own), checker, resolved=resolved)
