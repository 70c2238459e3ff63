"""Reads and checks single values of a recipe: parameters with their rules, truth values, ranges of layers, models."""

from __future__ import annotations

import itertools
import math
import numbers
import re
from typing import Any

from mol.config.document import Items, Place, Problems, Table, suggestion
from mol.config.methods import FOREIGN_PARAMETERS, METHODS, MethodSpec, ParameterSpec, Scalar
from mol.config.model_reference import ModelReference
from mol.config.parameters import ParameterMap, Rule, compile_filter
from mol.errors import ConfigError


class ValueReader:
    """Reads values for one method, and collects problems and notes.

    Attributes:
        spec: the method, or None where the recipe names none that is known.
        problems: what is wrong so far.
        notes: what has no effect.
        places: where each model is named first.
    """

    def __init__(self, spec: MethodSpec | None, problems: Problems, notes: list[str]) -> None:
        """Read for a method into given collections."""
        self.spec = spec
        self.problems = problems
        self.notes = notes
        self.places: dict[ModelReference, str] = {}

    def keys(self, table: Table, known: tuple[str, ...], what: str, hints: dict[str, str] | None = None) -> bool:
        """Refuse keys that a map does not have, and tell whether there were none.

        Args:
            table: the map.
            known: its keys.
            what: words for the map, as in "unknown key `x` in a slice".
            hints: for certain unknown keys, what to do instead.
        """
        unknown = [word for word in table if word not in known]
        for word in unknown:
            hint = f": {hints[word]}" if hints and word in hints else suggestion(word, known)
            self.problems.add(table.at(word), f"unknown key `{word}` in {what}{hint}")
        return not unknown

    def boolean(self, value: object, place: Place, name: str) -> bool:
        """Read a truth value; a wrong one is a problem and false."""
        read = _as_bool(value)
        if read is None:
            self.problems.add(place, f"`{name}` must be true or false, not {_shown(value)}")
        return bool(read)

    def model(self, value: object, place: Place) -> ModelReference | None:
        """Read a model reference; a wrong one is a problem and None."""
        try:
            model = ModelReference.parse(value)
        except ConfigError as error:
            self.problems.add(place, str(error))
            return None
        self.places.setdefault(model, str(place))
        return model

    def layer_range(self, value: object, place: Place) -> tuple[int, int] | None:
        """Read `[first, end]`, counted from 0, the end not included; a wrong one is a problem and None."""
        bounds = [_as_int(bound) for bound in value] if isinstance(value, list) else []
        if len(bounds) != 2 or None in bounds:
            self.problems.add(place, f"`layer_range` is two whole numbers, as in [0, 16], not {_shown(value)}")
            return None
        first, end = (bound or 0 for bound in bounds)
        if not 0 <= first < end:
            self.problems.add(
                place, f"`layer_range` [{first}, {end}] holds no layer: it counts from 0 and does not include its end"
            )
            return None
        return first, end

    def parameters(self, value: object, place: Place, *, of_model: bool) -> ParameterMap:
        """Read a `parameters` map.

        Args:
            value: the map, or None.
            place: where it stands.
            of_model: whether it belongs to one model, which has fewer parameters than the merge.
        """
        if value is None:
            return ParameterMap()
        if not isinstance(value, Table):
            self.problems.add(place, f"`parameters` is a map from parameters to values, not {_shown(value)}")
            return ParameterMap()
        read: dict[str, tuple[Rule, ...]] = {}
        for word, inner in value.items():
            spec = self._parameter(word, value.at(word), of_model=of_model)
            if spec is None:
                continue
            if spec.name in read:
                self.problems.add(value.at(word), f"`{word}` is `{spec.name}` again: give one of the two")
            read[spec.name] = self._rules(inner, value.at(word), spec)
        return ParameterMap(read)

    def _parameter(self, word: str, place: Place, *, of_model: bool) -> ParameterSpec | None:
        if self.spec is None:
            known = {name for method in METHODS.values() for name in method.parameters} | set(FOREIGN_PARAMETERS)
            if word not in known:
                self.problems.add(place, f"unknown parameter `{word}`{suggestion(word, sorted(known))}")
            return None
        spec = self.spec.parameter(word)
        if spec is None and word in FOREIGN_PARAMETERS:
            self.notes.append(f"`{word}` has no effect on {self.spec.name}: {FOREIGN_PARAMETERS[word]}")
        elif spec is None:
            own = list(self.spec.parameters)
            hint = suggestion(word, own) or suggestion(word, FOREIGN_PARAMETERS)
            listed = ", ".join(f"`{name}`" for name in own)
            self.problems.add(
                place, f"unknown parameter `{word}` for {self.spec.name}{hint or f'; its parameters are {listed}'}"
            )
        elif of_model and not spec.per_model:
            self.problems.add(
                place, f"`{word}` of a single model: it belongs to the whole merge, in `parameters` of the recipe"
            )
            return None
        return spec

    def _rules(self, value: object, place: Place, spec: ParameterSpec) -> tuple[Rule, ...]:
        if isinstance(value, Table):
            return self._rule(value, place, spec)
        if not isinstance(value, Items) or not any(isinstance(item, Table) for item in value):
            read = self._value(value, place, spec)
            return () if read is None else (Rule(read),)
        rules: list[Rule] = []
        for item, where in zip(value, value.places, strict=True):
            if isinstance(item, Table):
                rules += self._rule(item, where, spec)
            else:
                self.problems.add(where, f"`{spec.name}` mixes values with `{{filter, value}}` maps in one list")
        for rule, later in itertools.pairwise(rules):
            if rule.filter is None:
                rest = later.filter or "all tensors"
                self.notes.append(f"a value of `{spec.name}` for {rest} is never used: it follows one for all tensors")
        return tuple(rules)

    def _rule(self, table: Table, place: Place, spec: ParameterSpec) -> tuple[Rule, ...]:
        self.keys(table, ("filter", "value"), f"a value of `{spec.name}`")
        if table.get("value") is None:
            self.problems.add(place, f"a value of `{spec.name}` in map form needs `value`")
            return ()
        read = self._value(table["value"], table.at("value"), spec)
        text = table.get("filter")
        if text is not None and (not isinstance(text, str) or not text):
            self.problems.add(table.at("filter"), f"`filter` is a part of a tensor's name, not {_shown(text)}")
            return ()
        if text == "*":
            text = None
        if text is not None:
            try:
                compile_filter(text)
            except re.error as error:
                self.problems.add(table.at("filter"), f"filter `{text}` is no regular expression: {error}")
                return ()
        return () if read is None else (Rule(read, text),)

    def _value(self, value: object, place: Place, spec: ParameterSpec) -> Scalar | tuple[Scalar, ...] | None:
        """Read one value or the control points of a gradient."""
        if not isinstance(value, Items):
            return self._scalar(value, place, spec)
        if not value:
            self.problems.add(place, f"`{spec.name}` is an empty list")
            return None
        points = [self._scalar(item, where, spec) for item, where in zip(value, value.places, strict=True)]
        good = tuple(point for point in points if point is not None)
        if len(good) != len(points):
            return None
        return good[0] if len(set(good)) == 1 else good

    def _scalar(self, value: object, place: Place, spec: ParameterSpec) -> Scalar | None:
        read, wanted = _READERS[spec.kind](value, spec)
        if read is None:
            self.problems.add(place, f"`{spec.name}` is {_shown(value)}; it must be {wanted}")
        return read


def _as_bool(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    return None


def _as_int(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", value):
        return int(value)
    return None


def _read_float(value: object, spec: ParameterSpec) -> tuple[Scalar | None, str]:
    bounded = math.isfinite(spec.low) or math.isfinite(spec.high)
    wanted = f"from {spec.low:g} to {spec.high:g}" if bounded else "a finite number"
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)):
        return None, wanted
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None, wanted
    return (number if math.isfinite(number) and spec.low <= number <= spec.high else None), wanted


def _read_bool(value: object, spec: ParameterSpec) -> tuple[Scalar | None, str]:
    return _as_bool(value), "true or false"


def _read_choice(value: object, spec: ParameterSpec) -> tuple[Scalar | None, str]:
    for choice, others in spec.choices.items():
        if value == choice or value in others:
            return choice, ""
    wanted = " or ".join(f"`{choice}`" for choice in spec.choices)
    return None, wanted + (suggestion(value, spec.choices) if isinstance(value, str) else "")


_READERS = {"float": _read_float, "bool": _read_bool, "str": _read_choice}


def _shown(value: Any) -> str:  # noqa: ANN401 - whatever the recipe holds
    if isinstance(value, Table):
        return "a map"
    if value is None:
        return "empty"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
