"""Reads and checks single values of a recipe: parameters with their rules, truth values, ranges of layers, models."""

from __future__ import annotations

import copy
import itertools
import math
import re
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from mol.config.auto_weights import Auto, read_auto
from mol.config.document import Items, Location, Problems, Table, shown
from mol.config.ignored import without_effect
from mol.config.method_spec import MethodSpec, ParameterSpec, Required, Scalar
from mol.config.methods import METHODS, foreign_parameters
from mol.config.model_reference import ModelReference
from mol.config.parameters import ParameterMap, Rule, compile_filter
from mol.config.scalars import as_bool, as_int, read_scalar
from mol.errors import ConfigError
from mol.text import closest, suggestion

if TYPE_CHECKING:
    from collections.abc import Container

_INPUTS = frozenset(("base_model", "models", "modules", "slices"))
_MOST_IGNORED = 100
_SLIP = 0.8  # how like a known word one is that was meant
_KEYS_OF_RECIPE = frozenset((
    "base_model", "chat_template", "dtype", "layer_alignment", "merge_method", "models", "modules", "out_dtype",
    "output_path", "precision", "rules", "slices", "tokenizer", "tokenizer_source",
))  # fmt: skip


class ValueReader:
    """Reads values for one method, and collects problems and notes.

    Attributes:
        spec: the method, or None where the recipe names none that is known.
        problems: what is wrong so far.
        notes: what has no effect.
        warnings: what has no effect and might be meant to have one.
        lenient: what mergekit ignores is warned of, not refused: the recipe is in its grammar.
        locations: where each model is named first.
        recipe: the keys of the recipe, for words that stand in the wrong map.
        shared: the recipe's own parameters, once they are read.
        stages: what the other documents of the recipe call their results.
    """

    def __init__(
        self, spec: MethodSpec | None, problems: Problems, notes: list[str], stages: Container[str] = ()
    ) -> None:
        """Read for a method into given collections."""
        self.spec = spec
        self.problems = problems
        self.notes = notes
        self.warnings: list[str] = []
        self.lenient = False
        self.locations: dict[ModelReference, str] = {}
        self.recipe: Table | None = None
        self.shared = ParameterMap()
        self.stages = stages
        self._models: dict[tuple[object, ...], ModelReference] = {}

    def of_method(self, spec: MethodSpec | None) -> ValueReader:
        """Return a reader for another method into the same collections, to which nothing is unknown to mergekit."""
        other = copy.copy(self)
        other.spec, other.lenient, other.shared = spec, False, ParameterMap()
        return other

    def keys(
        self,
        table: Table,
        known: tuple[str, ...],
        what: str,
        hints: dict[str, str] | None = None,
        later: Container[str] = (),
    ) -> bool:
        """Refuse keys that a map does not have, or note that they have no effect; return whether none was refused.

        Args:
            table: the map.
            known: its keys.
            what: words for the map, as in "unknown key `x` in a slice".
            hints: for certain unknown keys, what to do instead.
            later: keys that are refused elsewhere, and so never suggested.
        """
        before = len(self.problems)
        for word in table:
            if word in known or word in later:
                continue
            if hints and word in hints:
                self.problems.add(table.at(word), f"unknown key `{word}` in {what}: {hints[word]}")
            elif (note := self._note_on(word, table[word], what)) is not None:
                self.notes.append(note)
            else:
                way_out, ignored = self._way_out(word, known, what)
                if ignored and self.lenient:
                    self.ignore(word, f"in {what}", table.at(word), way_out)
                else:
                    self.problems.add(table.at(word), f"unknown key `{word}` in {what}{way_out}")
        return len(self.problems) == before

    def ignore(self, word: str, where: str, location: Location, way_out: str = "") -> None:
        """Warn of a word that mergekit takes no notice of; where there are very many, this is no recipe."""
        line = f"`{word}` {where} has no effect: mergekit ignores it, and so does mol{way_out}"
        if len(self.warnings) < _MOST_IGNORED:
            self.warnings.append(line)
        else:
            self.problems.add(location, line)

    def _note_on(self, word: str, value: object, what: str) -> str | None:
        """Return the note about a word in a map where it has no effect; None where it might be meant to have one."""
        note = without_effect(word, what)
        if note is not None or self.spec is None:
            return note
        if self._is_key_of_recipe(word, what) and self.recipe is not None and self.recipe.get(word) == value:
            return f"`{word}` in {what} has no effect in mergekit, and none here; the recipe itself says the same"
        spec = self.spec.parameter(word)
        if spec is None and word in foreign_parameters():
            return f"`{word}` has no effect on {self.spec.name}: {foreign_parameters()[word]}"
        if spec is not None and not spec.per_model and self._is_in_effect(spec, value):
            return f"`{word}` in {what} has no effect in mergekit, and none here; its value is in effect anyway"
        return None

    def _way_out(self, word: str, known: tuple[str, ...], what: str) -> tuple[str, bool]:
        """Return what to write instead of an unknown key, and whether a merge may continue without it.

        It may not where a typing error, or a key at the wrong level of the recipe, would be lost with it.
        """
        methods = METHODS.values() if self.spec is None else (self.spec,)
        if self._is_key_of_recipe(word, what):
            return ": it is a key of the recipe, write it next to `merge_method`", word not in _INPUTS
        spec = next((found for method in methods if (found := method.parameter(word))), None)
        if spec is not None and (spec.per_model or what == "a recipe"):
            return f": write `parameters: {{{word}: ...}}`", what == "a recipe"
        if spec is not None:
            return ": it belongs to the whole merge, in `parameters` of the recipe", True
        if word.isdecimal():
            return f": a decimal has a point, as in 0.{word}; a comma ends the entry", False
        parameters = [name for method in methods for name in method.parameters] if "parameters" in known else []
        meant = word.lower().replace("-", "_")
        weighs = any("weight" in method.parameters for method in methods)
        near = closest(meant, (*(key for key in known if weighs or key != "weights"), *parameters))
        if near is None:
            return "; leave it out, or make it a comment with `#`", True
        slip = closest(meant, (near,), cutoff=_SLIP) is not None
        if near == "dtype" and self.recipe is not None and self.recipe.get("out_dtype") is not None:
            slip = False  # `dtype` itself would have no effect
        return (
            f"; did you mean `parameters: {{{near}: ...}}`?" if near in parameters else f"; did you mean `{near}`?"
        ), not slip

    def _is_key_of_recipe(self, word: str, what: str) -> bool:
        return what != "a recipe" and word in _KEYS_OF_RECIPE

    def _is_in_effect(self, spec: ParameterSpec, value: object) -> bool:
        """Return whether a value is what a parameter of the whole merge has without it."""
        rules = ValueReader(self.spec, Problems(), []).rules(value, Location(""), spec)
        held = self.shared.get(spec.name)
        return bool(rules) and rules == (held if held is not None else (Rule(_plain_default(spec)),))

    def boolean(self, value: object, location: Location, name: str) -> bool:
        """Read a truth value; a wrong one is a problem and false."""
        read = as_bool(value)
        if read is None:
            self.problems.add(location, f"`{name}` must be true or false, not {shown(value)}")
        return bool(read)

    def whole(self, value: object, location: Location, name: str, low: int, high: int) -> int | None:
        """Read a whole number; a wrong one is a problem and None."""
        read = as_int(value)
        if read is None or not low <= read <= high:
            self.problems.add(location, f"`{name}` is a whole number from {low} to {high:,}, not {shown(value)}")
            return None
        return read

    def model(self, value: object, location: Location) -> ModelReference | None:
        """Read a model reference; a wrong one is a problem and None.

        Names of one model are one reference, the one that is read first, however they are spelled: models are
        distinguished by comparing references.
        """
        try:
            model = ModelReference.parse(value)
        except ConfigError as error:
            self.problems.add(location, str(error))
            return None
        model = self._as_stage(model)
        first = self._models.setdefault(model.identity(), model)
        if first != model:
            self.notes.append(f"`{model}` is `{first}`, spelled another way: they are one model")
        if model.architecture not in (None, first.architecture):
            self.problems.add(location, f"`override_architecture` of `{first}` belongs where the model is named first")
        self.locations.setdefault(first, str(location))
        return first

    def _as_stage(self, model: ModelReference) -> ModelReference:
        """Return what a path means that mergekit-multi writes for a stage in its cards: DIRECTORY/NAME, for NAME."""
        name = PurePath(model.name).name
        path = model.name.startswith(("/", "./", "../", "~/")) and not model.is_directory()
        if not path or model.revision is not None or name not in self.stages:
            return model
        self.notes.append(f"`{model.name}` is the document `{name}`: there is no such directory")
        return replace(model, name=name)

    def layer_range(self, value: object, location: Location) -> tuple[int, int] | None:
        """Read `[first, end]`, counted from 0, the end not included; a wrong one is a problem and None."""
        bounds = [as_int(bound) for bound in value] if isinstance(value, list) else []
        if len(bounds) != 2 or None in bounds:
            self.problems.add(location, f"`layer_range` is two whole numbers, as in [0, 16], not {shown(value)}")
            return None
        first, end = (bound or 0 for bound in bounds)
        if not 0 <= first < end:
            self.problems.add(
                location,
                f"`layer_range` [{first}, {end}] holds no layer: it counts from 0 and does not include its end",
            )
            return None
        return first, end

    def parameters(self, value: object, location: Location, *, of_model: bool) -> ParameterMap:
        """Read a `parameters` map.

        Args:
            value: the map, or None.
            location: where it stands.
            of_model: whether it belongs to one model, which has fewer parameters than the merge.
        """
        if value is None:
            return ParameterMap()
        if not isinstance(value, Table):
            self.problems.add(location, f"`parameters` is a map from parameters to values, not {shown(value)}")
            return ParameterMap()
        read: dict[str, tuple[Rule, ...]] = {}
        for word, inner in value.items():
            spec = self._parameter(word, value.at(word), inner, of_model=of_model)
            if spec is None:
                continue
            if spec.name in read:
                self.problems.add(value.at(word), f"`{word}` is `{spec.name}` again: give one of the two")
            if of_model and not spec.per_model:
                self._shared_of_model(word, inner, value.at(word), spec)
                continue
            read[spec.name] = self.rules(inner, value.at(word), spec)
        return ParameterMap(read)

    def _shared_of_model(self, word: str, value: object, location: Location, spec: ParameterSpec) -> None:
        """Note a parameter of the whole merge under a model if it asks for what is in effect, else refuse it."""
        if self._is_in_effect(spec, value):
            self.notes.append(
                f"`{word}` of a single model has no effect in mergekit, and none here; its value is in effect anyway"
            )
            return
        way_out = ": it belongs to the whole merge, in `parameters` of the recipe"
        if self.lenient:
            self.ignore(word, "of a single model", location, way_out)
        else:
            self.problems.add(location, f"`{word}` of a single model{way_out}")

    def _parameter(self, word: str, location: Location, value: object, *, of_model: bool) -> ParameterSpec | None:
        spec = None if self.spec is None else self.spec.parameter(word)
        if spec is not None:
            return spec
        note = self._note_on(word, value, "`parameters`")
        if note is not None:
            self.notes.append(note)
            return None
        methods = METHODS.values() if self.spec is None else (self.spec,)
        own = {name: found for method in methods for name, found in method.parameters.items()}
        known = {*foreign_parameters(), *own, *(alias for found in own.values() for alias in found.aliases)}
        if self.spec is None and word in known:
            return None
        of_method = f" for {self.spec.name}" if self.spec is not None else ""
        ignored = self.lenient
        if self._is_key_of_recipe(word, "`parameters`"):
            hint, ignored = (
                ": it is a key of the recipe, write it next to `parameters`",
                ignored and word not in _INPUTS,
            )
        elif word.isdecimal():
            hint, ignored = f": a decimal has a point, as in 0.{word}; a comma ends the entry", False
        else:
            ignored &= closest(word.lower().replace("-", "_"), own, cutoff=_SLIP) is None
            fitting = [name for name, found in own.items() if found.per_model or not of_model]
            listed = ", ".join(f"`{name}`" for name in own)
            none = f"; its parameters are {listed}" if own else "; it has none"
            hint = suggestion(word, fitting) or suggestion(word, own) or none
            if self.spec is None and not hint.startswith("; did"):
                return None  # a parameter of the method that was meant, perhaps
        if ignored:
            self.ignore(word, f"in `parameters`{of_method}", location, hint)
        else:
            self.problems.add(location, f"unknown parameter `{word}`{of_method}{hint}")
        return None

    def rules(self, value: object, location: Location, spec: ParameterSpec) -> tuple[Rule, ...]:
        """Read the value of a parameter in any of its forms; a wrong one is a problem and left out."""
        if isinstance(value, Table) and not value.keys() & set(spec.forms):
            return self._rule(value, location, spec)
        if not isinstance(value, Items) or not any(isinstance(item, Table) for item in value):
            read = self._value(value, location, spec)
            return () if read is None else (Rule(read),)
        rules: list[Rule] = []
        for item, where in zip(value, value.locations, strict=True):
            if isinstance(item, Table):
                rules += self._rule(item, where, spec)
            else:
                self.problems.add(where, f"`{spec.name}` mixes values with `{{filter, value}}` maps in one list")
        for rule, later in itertools.pairwise(rules):
            if rule.filter is None:
                rest = later.filter or "all tensors"
                self.notes.append(f"a value of `{spec.name}` for {rest} is never used: it follows one for all tensors")
        return tuple(rules)

    def _rule(self, table: Table, location: Location, spec: ParameterSpec) -> tuple[Rule, ...]:
        self.keys(table, ("filter", "value"), f"a value of `{spec.name}`")
        if table.get("value") is None:
            self.problems.add(location, f"a value of `{spec.name}` in map form needs `value`")
            return ()
        read = self._value(table["value"], table.at("value"), spec)
        sound, text = self.filter(table)
        return () if read is None or not sound else (Rule(read, text),)

    def filter(self, table: Table) -> tuple[bool, str | None]:
        """Read the filter of a map; return whether it is one, and None where it lets every tensor pass."""
        text = table.get("filter")
        if text is None or text == "*":
            return True, None
        if not isinstance(text, str) or not text:
            several = "; write an entry for each" if isinstance(text, list) else ""
            self.problems.add(table.at("filter"), f"`filter` is a part of a tensor's name, not {shown(text)}{several}")
            return False, None
        try:
            compile_filter(text)
        except (re.error, OverflowError, RecursionError) as error:
            self.problems.add(table.at("filter"), f"filter `{text[:80]}` is no regular expression: {error}")
            return False, None
        if self.lenient and not text.startswith("re:") and any(sign in text for sign in "*?["):
            self.notes.append(f"the filter `{text}` is a glob for the whole name; mergekit looks for it as it stands")
        return True, text

    def _value(
        self, value: object, location: Location, spec: ParameterSpec
    ) -> Scalar | tuple[Scalar, ...] | Auto | None:
        """Read one value or the control points of a gradient."""
        if isinstance(value, Table) and value.keys() & set(spec.forms):
            self.keys(value, spec.forms, f"`{spec.name}`")
            if spec.forms == ("auto",):
                auto = read_auto(value["auto"])
                if isinstance(auto, str):
                    self.problems.add(value.at("auto"), auto)
                return None if isinstance(auto, str) else auto
            if any(value.get(word) is None for word in spec.forms):
                self.problems.add(location, f"`{spec.name}` needs both, as in {{alpha: 0.2, beta: 0.8}}")
                return None
            alpha, beta = (self._scalar(value[word], value.at(word), spec) for word in spec.forms)
            if not isinstance(alpha, float) or not isinstance(beta, float):
                return None
            last = self._scalar(alpha + beta, location, spec)
            return (alpha, last) if isinstance(last, float) and beta else alpha
        if not isinstance(value, Items):
            return self._scalar(value, location, spec)
        if not value:
            self.problems.add(location, f"`{spec.name}` is an empty list")
            return None
        points = [self._scalar(item, where, spec) for item, where in zip(value, value.locations, strict=True)]
        good = tuple(point for point in points if point is not None)
        if len(good) != len(points):
            return None
        return good[0] if len(set(good)) == 1 else good

    def _scalar(self, value: object, location: Location, spec: ParameterSpec) -> Scalar | None:
        read, wanted = read_scalar(value, spec)
        if read is None:
            self.problems.add(location, f"`{spec.name}` is {shown(value)}; it must be {wanted}")
        return read


def _plain_default(spec: ParameterSpec) -> Scalar:
    return math.nan if isinstance(spec.default, Required) else spec.default  # NaN is no value that a recipe can give
