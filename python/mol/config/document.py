"""What a recipe is read from: plain maps and lists that know where each of their entries stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mol.config.parameters import ParameterMap
from mol.config.rules import RuleConfig
from mol.config.sources import SliceConfig, SourceConfig
from mol.config.tokenizer import TokenizerSection
from mol.errors import ConfigError

MAX_DEPTH = 32
"""A recipe is nested about eight deep; more is a mistake or an attack."""

MAX_KEY = 200
"""Most characters of a key; a longer one is no word."""

_MAX_BITS = 4096  # of a whole number; Python refuses to write out much longer ones
_MAX_PROBLEMS = 100


class Location(NamedTuple):
    """Where something stands: a line of a file, or a path of keys in Python values (line 0)."""

    label: str
    line: int = 0

    def __str__(self) -> str:
        """Return `file:line`, or the path of keys."""
        return f"{self.label}:{self.line}" if self.line else self.label


class Table(dict[str, Any]):
    """A map with text keys that knows where each key stands.

    Attributes:
        location: where the map stands.
        locations: where each key stands.
        anchored: keys whose values carry a YAML anchor, at any depth.
        repeated: keys given more than once, each time with an anchor, and where they stand the second time.
    """

    def __init__(self, location: Location) -> None:
        """Make an empty map that stands at a location."""
        super().__init__()
        self.location = location
        self.locations: dict[str, Location] = {}
        self.anchored: set[str] = set()
        self.repeated: dict[str, Location] = {}

    def put(self, key: str, value: object, location: Location) -> None:
        """Set an entry and where it stands."""
        self[key] = value
        self.locations[key] = location

    def at(self, key: str) -> Location:
        """Return where an entry stands; for an entry that is missing, where the map does."""
        return self.locations.get(key, self.location)

    def without(self, *keys: str) -> Table:
        """Return a copy that lacks some entries."""
        rest = Table(self.location)
        for key, value in self.items():
            if key not in keys:
                rest.put(key, value, self.at(key))
        rest.anchored = self.anchored.difference(keys)
        rest.repeated = {key: location for key, location in self.repeated.items() if key not in keys}
        return rest


class Items(list[Any]):
    """A list that knows where each of its items stands."""

    def __init__(self, location: Location) -> None:
        """Make an empty list that stands at a location."""
        super().__init__()
        self.location = location
        self.locations: list[Location] = []

    def put(self, value: object, location: Location) -> None:
        """Append an item and where it stands."""
        self.append(value)
        self.locations.append(location)


class Problems:
    """Collects everything that is wrong with a recipe, to report it at once."""

    def __init__(self) -> None:
        """Start without problems."""
        self._found: list[tuple[Location, str]] = []

    def __len__(self) -> int:
        """Count the problems found so far."""
        return len(self._found)

    def add(self, location: Location, message: str) -> None:
        """Note one problem.

        Raises:
            ConfigError: there are so many that this is no recipe with mistakes but some other text.
        """
        self._found.append((location, message))
        if len(self._found) > _MAX_PROBLEMS:
            raise ConfigError.listing(
                f"not a recipe: more than {_MAX_PROBLEMS} problems, of which the first are", self.lines()
            )

    def lines(self) -> list[str]:
        """Return the problems in the order of their lines, each once."""
        ordered = sorted(self._found, key=lambda found: found[0].line)
        return list(
            dict.fromkeys(f"{location}: {message}" if location.label else message for location, message in ordered)
        )

    def raise_any(self, header: str) -> None:
        """Raise what was found.

        Raises:
            ConfigError: there is at least one problem.
        """
        if self._found:
            raise ConfigError.listing(header, self.lines())


def shown(value: object) -> str:
    """Return a value as a message quotes it, cut where it is long."""
    if isinstance(value, Table):
        return "a map"
    if value is None:
        return "empty"
    if is_huge(value):
        return "a number of more than 1,200 digits"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_huge(value: object) -> bool:
    """Return whether a whole number is so long that Python refuses to write it into a message."""
    return isinstance(value, int) and value.bit_length() > _MAX_BITS


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
    location = Location(path)
    if isinstance(value, (SourceConfig, SliceConfig, ParameterMap, RuleConfig, TokenizerSection)):
        value = value.to_dict()
    if isinstance(value, Mapping):
        table = Table(location)
        for key, item in value.items():
            word = "" if is_huge(key) else str(key)
            if not word or len(word) > MAX_KEY:
                raise ConfigError(f"{path or 'the recipe'}: a key is a word of 1 to {MAX_KEY} characters")
            inner = f"{path}.{word}" if path else word
            table.put(word, from_python(item, inner, depth + 1), Location(inner))
        return table
    if isinstance(value, (list, tuple)):
        items = Items(location)
        for index, item in enumerate(value):
            inner = f"{path}[{index}]"
            items.put(from_python(item, inner, depth + 1), Location(inner))
        return items
    if is_huge(value):
        raise ConfigError(
            f"{path or 'the recipe'}: a whole number of more than 1,200 digits; nothing in a recipe is so large"
        )
    return value
