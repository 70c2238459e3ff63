"""`sweep:`: a recipe for several values of a parameter becomes one recipe per value, each with a directory's name."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from mol.config.average import AVERAGE, WORDS, is_average
from mol.config.document import Items, Location, Problems, Table, shown
from mol.config.flat import is_flat, spread_weights
from mol.config.methods import METHODS
from mol.config.model_reference import ModelReference
from mol.errors import ConfigError
from mol.regex import regex
from mol.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mol.config.method_spec import MethodSpec, ParameterSpec

_Config = TypeVar("_Config")

MOST: Final = 100
"""Most results of one sweep."""

_WEIGHTS: Final = "weights"
_UNFIT: Final = regex(r"[^\w.,=+-]+")


class Variant(NamedTuple):
    """A recipe to be read: one combination of the values of a sweep.

    Attributes:
        directory: the name of its directory in the output.
        values: what its parameters are, as YAML holds them.
        table: the recipe.
    """

    directory: str
    values: Mapping[str, Any]
    table: Table


class _Choice(NamedTuple):
    """One value of one parameter: the word of the recipe, the value, where it stands."""

    word: str
    value: object
    location: Location

    @property
    def name(self) -> str:
        return f"{self.word}-{_written(self.value)}"


def read_each(
    table: Table, make: Callable[[Table], _Config], header: str
) -> dict[str, tuple[Mapping[str, Any], _Config]]:
    """Read each of the recipes that a `sweep` lists.

    Args:
        table: the recipe that has it.
        make: reads one of them.
        header: first line of the error.

    Returns:
        The values of each and the recipe that was read, by directory.

    Raises:
        ConfigError: lists everything that is wrong with any of them.
    """
    problems = Problems()
    variants = expand(table, problems)
    problems.raise_any(header)
    found: dict[str, tuple[Mapping[str, Any], _Config]] = {}
    listed: dict[str, None] = {}
    for variant in variants:
        try:
            found[variant.directory] = variant.values, make(variant.table)
        except ConfigError as error:
            listed.update(dict.fromkeys(error.problems or [str(error)]))
    if listed:
        raise ConfigError.listing(header, list(listed))
    return found


def expand(table: Table, problems: Problems) -> list[Variant]:
    """Write out a recipe that has a `sweep`: every combination of the values of its parameters, the last one fastest.

    Args:
        table: the recipe.
        problems: collects what cannot be swept.

    Returns:
        A recipe without `sweep` for each; empty where there are problems.
    """
    location, sweep = table.at("sweep"), table["sweep"]
    if not isinstance(sweep, Table) or not sweep:
        found = "an empty one" if isinstance(sweep, Table) else shown(sweep)
        problems.add(location, f"`sweep` is a map from parameters to lists of values, not {found}")
        return []
    method = table.get("merge_method") or table.get("method")
    spec = METHODS.get(method) if isinstance(method, str) else None
    before = len(problems)
    for word in sweep if is_average(table) else ():
        if word not in WORDS:
            problems.add(sweep.at(word), f"`{word}` in `sweep`: {AVERAGE} has `last` and `weights`")
    choices = [list(_choices(word, sweep, spec, table, problems)) for word in sweep]
    count = math.prod(map(len, choices))
    if count > MOST:
        problems.add(location, f"`sweep` asks for {count:,} models, more than {MOST} at once; take fewer values")
    if len(problems) > before:
        return []
    variants = []
    for chosen in itertools.product(*choices):
        recipe = _copied(table.without("sweep"))
        for choice in chosen:
            _give(recipe, choice, spec, problems)
        name = "_".join(choice.name for choice in chosen)
        variants.append(Variant(name, {choice.word: plain(choice.value) for choice in chosen}, recipe))
    return variants


def _choices(word: str, sweep: Table, spec: MethodSpec | None, recipe: Table, problems: Problems) -> Iterator[_Choice]:
    values, location = sweep[word], sweep.at(word)
    if spec is not None and (problem := _unknown(word, spec)):
        problems.add(location, problem)
        return
    if not isinstance(values, Items) or len(values) < 2:
        position = "next to `merge_method`" if is_average(recipe) or word == _WEIGHTS else "in `parameters`"
        problems.add(
            location, f"`{word}` in `sweep` is a list of two values or more, not {shown(values)}; one stands {position}"
        )
        return
    parameter = None if spec is None else spec.parameter(word)
    if parameter is not None and (owner := _fixed(parameter, recipe)) is not None:
        problems.add(location, f"`{word}` in `sweep` has no effect: {owner} gives its own; leave it out there")
        return
    found: dict[str, object] = {}
    for value, where in zip(values, values.locations, strict=True):
        choice = _Choice(word, value, where)
        if choice.name in found:
            other = f"{plain(found[choice.name])} and {plain(value)}"
            problems.add(where, f"`{word}` in `sweep`: {other} are the same to six digits, and so is {choice.name}")
        found[choice.name] = value
        yield choice


def _unknown(word: str, spec: MethodSpec) -> str | None:
    """Return why a word cannot be swept, None if it can."""
    known = [*spec.parameters, *([_WEIGHTS] if "weight" in spec.parameters else [])]
    if word in known or spec.parameter(word) is not None:
        return None
    if not known:
        return f"`{word}` in `sweep`: {spec.name} has no parameters"
    listed = ", ".join(f"`{name}`" for name in known)
    return f"`{word}` in `sweep` is no parameter of {spec.name}{suggestion(word, known) or f'; there are {listed}'}"


def _fixed(parameter: ParameterSpec, recipe: Table) -> str | None:
    """Return what gives a parameter everywhere with more strength than the recipe does, None where something does not.

    A base has no parameters of its own, so a model without some may be one: it is the plan that finds results alike.
    """
    words = (parameter.name, *parameter.aliases)
    entries = [entry for key in ("models", "slices") for entry in _tables(recipe.get(key))]
    if recipe.get("slices") is not None and parameter.per_model:
        entries = [source for entry in entries for source in _tables(entry.get("sources"))]
    own = [any(word in _parameters(entry) for word in words) for entry in entries]
    if not own or not all(own):
        return None
    return "each model" if parameter.per_model else "each slice"


def _tables(value: object) -> list[Table]:
    return [entry for entry in value if isinstance(entry, Table)] if isinstance(value, Items) else []


def _parameters(entry: Table) -> Table:
    found = entry.get("parameters")
    return found if isinstance(found, Table) else Table(entry.location)


def _give(recipe: Table, choice: _Choice, spec: MethodSpec | None, problems: Problems) -> None:
    """Set a parameter of a recipe, whatever it was."""
    if is_average(recipe):
        recipe.put(choice.word, choice.value, choice.location)
        return
    if choice.word == _WEIGHTS and not is_flat(recipe):
        for entry in _tables(recipe.get("models")):
            entry.put("parameters", _parameters(entry).without("weight"), entry.at("parameters"))
        spread_weights(recipe, choice.value, choice.location, problems)
        return
    parameter = None if spec is None else spec.parameter(choice.word)
    words = (choice.word,) if parameter is None else (parameter.name, *parameter.aliases)
    given = recipe.get("parameters")
    if given is not None and not isinstance(given, Table):
        return  # refused where it is read
    parameters = Table(choice.location) if given is None else given.without(*words)
    parameters.put(choice.word, choice.value, choice.location)
    recipe.put("parameters", parameters, recipe.at("parameters") if given is not None else choice.location)
    if choice.word == _WEIGHTS:
        recipe.pop(_WEIGHTS, None)


def _copied(value: Any) -> Any:  # noqa: ANN401 - any value of a recipe
    """Copy the maps and lists of a recipe."""
    if isinstance(value, Table):
        table = value.without()
        for word in table:
            table[word] = _copied(table[word])
        return table
    if isinstance(value, Items):
        items = Items(value.location)
        for item, where in zip(value, value.locations, strict=True):
            items.put(_copied(item), where)
        return items
    return value


def plain(value: object) -> Any:  # noqa: ANN401 - any value of a recipe
    """Return a value of a recipe as YAML holds it."""
    if isinstance(value, ModelReference):
        return value.to_plain()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Table):
        return {word: plain(inner) for word, inner in value.items()}
    return [plain(item) for item in value] if isinstance(value, Items) else value


def _written(value: object) -> str:
    """Write a value as a part of a directory's name."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Items):
        return ",".join(map(_written, value))
    if isinstance(value, Table):
        return ",".join(f"{word}={_written(inner)}" for word, inner in value.items())
    return _UNFIT.sub("-", shown(value).strip("'\""))
