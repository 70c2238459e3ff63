"""What a recipe is read from: plain maps and lists that know where each of their entries stands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mol.config.parameters import ParameterMap
from mol.config.sources import SliceConfig, SourceConfig
from mol.errors import ConfigError

MAX_DEPTH = 32
"""A recipe is nested about eight deep; more is a mistake or an attack."""


class Place(NamedTuple):
    """Where something stands: a line of a file, or a path of keys in Python values (line 0)."""

    label: str
    line: int = 0

    def __str__(self) -> str:
        """Return `file:line`, or the path of keys."""
        return f"{self.label}:{self.line}" if self.line else self.label


class Table(dict[str, Any]):
    """A map with text keys that knows where each key stands."""

    def __init__(self, place: Place) -> None:
        """Make an empty map that stands at a place."""
        super().__init__()
        self.place = place
        self.places: dict[str, Place] = {}

    def put(self, key: str, value: object, place: Place) -> None:
        """Set an entry and where it stands."""
        self[key] = value
        self.places[key] = place

    def at(self, key: str) -> Place:
        """Tell where an entry stands; for an entry that is missing, where the map does."""
        return self.places.get(key, self.place)

    def without(self, *keys: str) -> Table:
        """Return a copy that lacks some entries."""
        rest = Table(self.place)
        for key, value in self.items():
            if key not in keys:
                rest.put(key, value, self.at(key))
        return rest


class Items(list[Any]):
    """A list that knows where each of its items stands."""

    def __init__(self, place: Place) -> None:
        """Make an empty list that stands at a place."""
        super().__init__()
        self.place = place
        self.places: list[Place] = []

    def put(self, value: object, place: Place) -> None:
        """Append an item and where it stands."""
        self.append(value)
        self.places.append(place)


class Problems:
    """Collects everything that is wrong with a recipe, so that it can be told at once."""

    def __init__(self) -> None:
        """Start without problems."""
        self._found: list[tuple[Place, str]] = []

    def __len__(self) -> int:
        """Count the problems found so far."""
        return len(self._found)

    def add(self, place: Place, message: str) -> None:
        """Note one problem."""
        self._found.append((place, message))

    def lines(self) -> list[str]:
        """Return the problems in the order of their lines, each once."""
        ordered = sorted(self._found, key=lambda found: found[0].line)
        return list(dict.fromkeys(f"{place}: {message}" if place.label else message for place, message in ordered))

    def raise_any(self, header: str) -> None:
        """Raise what was found.

        Raises:
            ConfigError: there is at least one problem.
        """
        if self._found:
            raise ConfigError.listing(header, self.lines())


def suggestion(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return `; did you mean ...?` for a word that looks like a known one, else nothing."""
    close = difflib.get_close_matches(word.lower().replace("-", "_"), list(known), n=1, cutoff=cutoff)
    return f"; did you mean `{close[0]}`?" if close else ""


def from_python(value: object, path: str = "", depth: int = 0) -> Any:  # noqa: ANN401 - any plain value
    """Turn Python mappings and sequences into tables and items; scalars, paths and model references stay.

    Args:
        value: what the caller gave.
        path: keys that led here, such as `models[0].parameters`.
        depth: how many containers are around it.

    Raises:
        ConfigError: containers are nested too deeply, as in a list that holds itself.
    """
    if depth > MAX_DEPTH:
        raise ConfigError(f"{path[:80]}...: nested more than {MAX_DEPTH} deep")
    place = Place(path)
    if isinstance(value, (SourceConfig, SliceConfig, ParameterMap)):
        value = value.to_dict()
    if isinstance(value, Mapping):
        table = Table(place)
        for key, item in value.items():
            word = str(key)
            inner = f"{path}.{word}" if path else word
            table.put(word, from_python(item, inner, depth + 1), Place(inner))
        return table
    if isinstance(value, (list, tuple)):
        items = Items(place)
        for index, item in enumerate(value):
            inner = f"{path}[{index}]"
            items.put(from_python(item, inner, depth + 1), Place(inner))
        return items
    return value
