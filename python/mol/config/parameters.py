"""Values of parameters: rules with filters, gradients over layers, and the first rule that fits a tensor."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from mol.config.auto_weights import Auto
from mol.config.expert_names import is_about_experts, other_names

if TYPE_CHECKING:
    from mol.config.method_spec import Scalar

Matcher = Callable[[str], object]
"""A test of a tensor's name; a true answer means that the rule applies."""


class Rule(NamedTuple):
    """One value of a parameter and the tensors that it is for.

    Attributes:
        value: one value, a tuple of control points of a gradient over the layers of a slice, or a way to find it.
        filter: None is every tensor. `re:` starts a regular expression that is searched for; a text with `*`, `?` or
            `[` is a glob for the whole name; any other text is looked for as it stands.
    """

    value: Scalar | tuple[Scalar, ...] | Auto
    filter: str | None = None

    def to_plain(self) -> Any:  # noqa: ANN401 - a scalar or a list
        """Return the value as YAML holds it."""
        if isinstance(self.value, Auto):
            return self.value.to_plain()
        return list(self.value) if isinstance(self.value, tuple) else self.value


class ParameterMap(Mapping[str, tuple[Rule, ...]]):
    """Rules by parameter name: read-only, hashable, compared by content."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Mapping[str, tuple[Rule, ...]] | None = None) -> None:
        """Copy a mapping of rules; the first rule that fits a tensor wins."""
        self._rules = dict(rules or {})

    def __getitem__(self, name: str) -> tuple[Rule, ...]:
        """Return the rules of a parameter."""
        return self._rules[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of parameters, in the order of the recipe."""
        return iter(self._rules)

    def __len__(self) -> int:
        """Count the parameters."""
        return len(self._rules)

    def __hash__(self) -> int:
        """Hash the content, whatever its order."""
        return hash(frozenset(self._rules.items()))

    def __repr__(self) -> str:
        """Return the call that makes an equal map."""
        return f"ParameterMap({self._rules!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as YAML holds them: `name: value` or `name: [{filter, value}, ...]`."""
        plain: dict[str, Any] = {}
        for name, rules in self._rules.items():
            if len(rules) == 1 and rules[0].filter is None:
                plain[name] = rules[0].to_plain()
            else:
                plain[name] = [
                    {"value": rule.to_plain()}
                    if rule.filter is None
                    else {"filter": rule.filter, "value": rule.to_plain()}
                    for rule in rules
                ]
        return plain


def chained(levels: Sequence[ParameterMap]) -> ParameterMap:
    """Return one map of several levels of parameters, the strongest first."""
    names = dict.fromkeys(name for level in levels for name in level)
    return ParameterMap({name: tuple(rule for level in levels for rule in level.get(name, ())) for name in names})


@lru_cache(maxsize=1024)
def compile_filter(text: str) -> Matcher:
    """Turn a filter into a test of a tensor's name; one for experts fits them however they are stored.

    Raises:
        re.error: the text after `re:` is no regular expression.
    """
    matches = _matcher(text)
    if not is_about_experts(text):
        return matches
    return lambda name: matches(name) or ("experts." in name and any(map(matches, other_names(name))))


def _matcher(text: str) -> Matcher:
    if text.startswith("re:"):
        return re.compile(text[3:]).search
    if any(sign in text for sign in "*?["):
        return re.compile(fnmatch.translate(text)).match
    return lambda name: text in name


def at_position(value: Scalar | tuple[Scalar, ...] | Auto, position: float) -> Scalar | Auto:
    """Return the value of a gradient at a position from 0 (first layer) to 1 (last layer).

    Numbers are interpolated linearly between evenly spaced control points; of truth values and texts the element
    `int(position * (n - 1))` is taken.
    """
    if not isinstance(value, tuple):
        return value
    where = min(max(position, 0.0), 1.0) * (len(value) - 1)
    index = int(where)
    left, share = value[index], where - index
    if share == 0.0 or isinstance(left, (bool, str)):
        return left
    right = value[index + 1]
    assert not isinstance(right, str)  # a gradient holds values of one kind
    return left + share * (right - left)


class Chain:
    """The rules that may give one parameter of one input, strongest first.

    Attributes:
        constant: the value where it is the same for every tensor, else None.
        links: a test of the tensor's name (None always passes) and the value, for each rule.
    """

    __slots__ = ("constant", "links")

    def __init__(self, name: str, *levels: ParameterMap) -> None:
        """Flatten levels of parameters, highest precedence first; what stands after a rule without filter is cut."""
        links: list[tuple[Matcher | None, Scalar | tuple[Scalar, ...] | Auto]] = []
        for level in levels:
            for rule in level.get(name, ()):
                links.append((None if rule.filter is None else compile_filter(rule.filter), rule.value))
        ends = (index for index, (matches, _) in enumerate(links) if matches is None)
        self.links = tuple(links[: next(ends, len(links)) + 1])
        only = self.links[0] if len(self.links) == 1 else None
        self.constant = None if only is None or only[0] is not None or isinstance(only[1], (tuple, Auto)) else only[1]

    def find(self, tensor: str, position: float) -> Scalar | Auto | None:
        """Return the value of the first rule that fits a tensor's name, None where none does."""
        for matches, value in self.links:
            if matches is None or matches(tensor):
                return at_position(value, position)
        return None


def auto_of(parameters: ParameterMap) -> Auto | None:
    """Return the way in which a recipe weighs its models by norms, None where it gives weights itself."""
    found = [rule.value for rule in parameters.get("weight", ())]
    return found[0] if found and isinstance(found[0], Auto) else None
