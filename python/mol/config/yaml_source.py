"""YAML text to tables and items with line numbers; nothing in a file can make it hang, fill memory or run code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from mol.config.document import MAX_DEPTH, MAX_KEY, Items, Location, Table
from mol.errors import ConfigError
from mol.regex import regex

MAX_BYTES = 16 << 20
"""Largest recipe that is read; a bigger file is some other file."""

MAX_ALIASED = 20_000
"""Values that may come from writing out aliases; aliases of aliases can otherwise expand to billions."""

_MAX_NUMBER = 400  # characters; a float has at most some 330, and Python refuses to write out whole numbers of 4,300
_SURROGATE = regex("[\ud800-\udfff]")
_PREFIX = "tag:yaml.org,2002:"
_TEXT_TAGS = {f"{_PREFIX}{name}" for name in ("str", "timestamp", "value", "merge")}

_Scalar = str | int | float | bool | None
_Loader = type[yaml.SafeLoader] | type[yaml.CSafeLoader]
_QUICK: _Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


@dataclass(slots=True)
class _Node:
    """A value as the parser returns it: a scalar, a list (`items`) or a map (`pairs`)."""

    line: int
    text: str | None = None
    scalar: _Scalar = None
    items: list[_Node] | None = None
    pairs: list[tuple[_Node, _Node]] | None = None
    is_merge: bool = False
    key: _Node | None = None  # of a map that is being read: the key that waits for its value
    is_open: bool = False
    size: int = 1  # values in it, aliases written out
    height: int = 0  # containers nested in it
    is_anchored: bool = False  # it, or something in it, carries an anchor


def read_source(source: str | Path | bytes, where: str | None = None) -> tuple[list[Table], str, str]:
    """Read a recipe's YAML from wherever it is, without checking what it says.

    Args:
        source: a file's path, its bytes, or YAML text (a `str` with a line break).
        where: what problems shall call it; the path, or "recipe", if None.

    Returns:
        The table of each of its documents, its text, and what problems call it.

    Raises:
        ConfigError: it is too big, is not UTF-8, or is not the YAML of maps.
        OSError: the file is missing or cannot be read.
    """
    if isinstance(source, str) and "\n" in source:
        where = where or "recipe"
        return read_documents(source, where), source, where
    if isinstance(source, bytes):
        data, where = source, where or "recipe"
    else:
        where = where or str(source)
        with Path(source).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    text = _decode(data, where)
    return read_documents(text, where), text, where


def _decode(data: bytes, where: str) -> str:
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{where}: more than {MAX_BYTES >> 20} MiB, too much for a recipe; give a YAML file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}:{line}: not UTF-8 text; give a YAML file") from error


def read_documents(text: str, where: str) -> list[Table]:
    """Read a recipe's YAML: one document or several, each with a map at the top.

    Args:
        text: the YAML.
        where: name of the file, as problems shall call it.

    Raises:
        ConfigError: the text is not YAML, is empty, holds a list or a scalar at the top of a document, a key twice,
            a tag, aliases that explode, or is nested too deeply; the message starts with `where:line`.
    """
    try:
        roots = _read_roots(text, where)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_describe(error, text, where)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    # A document with nothing in it, as `---` at the end begins one, is none.
    roots = [root for root in roots if not (root.scalar is None and root.items is None and root.pairs is None)]
    if not roots:
        raise ConfigError(f"{where}:1: the recipe is empty; it needs `merge_method`, and `models` or `slices`")
    for root in roots:
        if root.pairs is None:
            kind = "a list" if root.items is not None else f"the single value `{str(root.text)[:40]}`"
            raise ConfigError(
                f"{where}:{root.line}: a recipe is a map with keys such as `merge_method`; here is {kind}"
            )
    return [_to_table(root, Location(where, root.line), where) for root in roots]


def _read_roots(text: str, where: str) -> list[_Node]:
    """Read by libyaml, 20 times as fast; what it refuses by PyYAML, which knows surrogates and has other words."""
    try:
        return _Reader(where).read(text, _QUICK)
    except (yaml.YAMLError, UnicodeEncodeError):
        return _Reader(where).read(text, yaml.SafeLoader)


def _describe(error: yaml.MarkedYAMLError, text: str, where: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    shown = lines[line - 1] if line <= len(lines) else ""
    if "\t" in shown[: len(shown) - len(shown.lstrip())]:
        return f"{where}:{line}: a tab in the indentation; YAML is indented with spaces"
    details = " ".join(part for part in (error.problem, error.context) if part)
    return f"{where}:{line}: not YAML: {details}"


class _Reader:
    """Turns parser events into nodes without recursion, so that nesting cannot exhaust the stack."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._anchors: dict[str, _Node] = {}
        self._open: list[_Node] = []
        self._roots: list[_Node] = []
        self._aliased = 0
        self._scalars = yaml.SafeLoader("")  # knows what a plain scalar means

    def _refusal(self, line: int, message: str) -> ConfigError:
        return ConfigError(f"{self._where}:{line}: {message}")

    def read(self, text: str, loader: _Loader) -> list[_Node]:
        """Return the root of each document."""
        for event in yaml.parse(text, Loader=loader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}  # of a document's own
            elif isinstance(event, yaml.AliasEvent):
                self._attach(self._resolve_alias(str(event.anchor), line), line)
            elif isinstance(event, yaml.ScalarEvent):
                self._attach(self._anchor(event.anchor, self._scalar(event, line)), line)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._begin(event, line)
            elif isinstance(event, yaml.CollectionEndEvent):
                node = self._open.pop()
                node.is_open = False
                self._attach(node, line)
        return self._roots

    def _anchor(self, anchor: str | None, node: _Node) -> _Node:
        if anchor is not None:
            self._anchors[anchor] = node
            node.is_anchored = True
        return node

    def _resolve_alias(self, anchor: str, line: int) -> _Node:
        target = self._anchors.get(anchor)
        if target is None:
            raise self._refusal(line, f"alias `*{anchor}` has no anchor `&{anchor}` before it")
        if target.is_open:
            raise self._refusal(line, f"alias `*{anchor}` stands inside its own anchor")
        self._aliased += target.size
        if self._aliased > MAX_ALIASED:
            raise self._refusal(line, f"aliases that expand to more than {MAX_ALIASED} values; write them out")
        return replace(target, is_anchored=False)

    def _begin(self, event: yaml.CollectionStartEvent, line: int) -> None:
        if event.tag is not None and event.tag not in (f"{_PREFIX}map", f"{_PREFIX}seq"):
            raise self._refusal(line, f"the tag `{event.tag}`; a recipe holds plain values only")
        is_list = isinstance(event, yaml.SequenceStartEvent)
        node = _Node(line, items=[] if is_list else None, pairs=None if is_list else [], is_open=True)
        self._open.append(self._anchor(event.anchor, node))
        self._check_depth(len(self._open), line)

    def _check_depth(self, depth: int, line: int) -> None:
        if depth > MAX_DEPTH:
            raise self._refusal(line, f"nested more than {MAX_DEPTH} deep")

    def _attach(self, node: _Node, line: int) -> None:
        """Add a finished node to the container around it."""
        if not self._open:
            self._roots.append(node)
            return
        parent = self._open[-1]
        parent.size += node.size
        parent.height = max(parent.height, node.height + 1)
        parent.is_anchored |= node.is_anchored
        self._check_depth(len(self._open) + node.height, line)
        if parent.items is not None:
            parent.items.append(node)
        elif parent.key is None:
            if node.text is None:
                raise self._refusal(line, "a key of a map must be a word, not a list or a map")
            if len(node.text) > MAX_KEY:
                raise self._refusal(line, f"a key of {len(node.text)} characters; a key is a word")
            parent.key = node
        else:
            assert parent.pairs is not None
            parent.pairs.append((parent.key, node))
            parent.key = None

    def _whole_characters(self, text: str, line: int) -> str:
        """Join surrogate pairs, as JSON escapes spell an emoji; half of one is no character and fits into no file."""
        if _SURROGATE.search(text) is None:
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self._refusal(line, "half of a surrogate pair, which is no character") from error

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> _Node:
        explicit = event.tag if event.tag != "!" else None
        implicit = (True, False) if event.tag == "!" else event.implicit  # libyaml has another for `!` alone
        tag: str = explicit or self._scalars.resolve(yaml.ScalarNode, event.value, implicit)  # type: ignore[no-untyped-call]
        text = self._whole_characters(event.value, line)
        node = _Node(line, text=text, scalar=text, is_merge=tag == f"{_PREFIX}merge")
        if tag in _TEXT_TAGS:
            return node
        constructor = {
            f"{_PREFIX}null": lambda _: None,
            f"{_PREFIX}bool": self._scalars.construct_yaml_bool,
            f"{_PREFIX}int": self._scalars.construct_yaml_int,
            f"{_PREFIX}float": self._scalars.construct_yaml_float,
        }.get(tag)
        if constructor is None:
            raise self._refusal(line, f"the tag `{tag}`; a recipe holds plain values only")
        if len(event.value) > _MAX_NUMBER:
            raise self._refusal(line, f"a number of {len(event.value)} characters; nothing in a recipe is so large")
        try:
            node.scalar = constructor(yaml.ScalarNode(tag, event.value))
        except (ValueError, KeyError, IndexError) as error:
            raise self._refusal(line, f"`{event.value[:40]}` is not a {tag.removeprefix(_PREFIX)}") from error
        return node


def _to_table(node: _Node, location: Location, where: str) -> Table:
    table = Table(location)
    merged: list[_Node] = []
    for key, value in node.pairs or ():
        here = Location(where, key.line)
        if key.is_merge:
            merged.extend(_merge_targets(value, where, key.line))
            continue
        assert key.text is not None
        if key.text in table:
            if _to_value(value, here, where) == table[key.text]:
                continue  # says the same
            # Holders of anchors, which people copy with their names: the reader of the map knows whether they are.
            if not (value.is_anchored and key.text in table.anchored):
                first = table.at(key.text).line
                raise ConfigError(f"{here}: key `{key.text}` is given twice, first on line {first}")
            table.repeated[key.text] = here
        if value.is_anchored:
            table.anchored.add(key.text)
        table.put(key.text, _to_value(value, here, where), here)
    for target in merged:  # what the map says itself is stronger, and the first of several maps
        inherited = _to_table(target, location, where)
        for word, value in inherited.items():
            if word not in table:
                table.put(word, value, inherited.at(word))
    return table


def _merge_targets(value: _Node, where: str, line: int) -> list[_Node]:
    targets = [value] if value.items is None else value.items
    if any(target.pairs is None for target in targets):
        raise ConfigError(f"{where}:{line}: `<<` takes a map or a list of maps")
    return targets


def _to_value(node: _Node, location: Location, where: str) -> _Scalar | Table | Items:
    if node.pairs is not None:
        return _to_table(node, location, where)
    if node.items is None:
        return node.scalar
    items = Items(location)
    for item in node.items:
        here = Location(where, item.line)
        items.put(_to_value(item, here, where), here)
    return items
