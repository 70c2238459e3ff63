"""YAML text: lines, and everything that is refused before a recipe is looked at."""

from __future__ import annotations

import pytest

from mol.config.document import Items, Table
from mol.config.yaml_source import read_documents
from mol.errors import ConfigError
from tests.config.toolkit import calls


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_documents(text, "config.yml")
    return str(caught.value)


def test_entries_know_their_lines() -> None:
    (table,) = read_documents("a: 1\nb:\n  - x\n  -\n    c: 2\n", "config.yml")
    assert table == {"a": 1, "b": ["x", {"c": 2}]}
    assert [str(table.at(key)) for key in table] == ["config.yml:1", "config.yml:2"]
    items = table["b"]
    assert isinstance(items, Items)
    assert [location.line for location in items.locations] == [3, 5]
    assert isinstance(items[1], Table)
    assert items[1].at("c").line == 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0.5", 0.5),
        ("1e-3", "1e-3"),  # YAML 1.1 calls this text; parameters read it as a number
        ("1.0e-3", 0.001),
        ("yes", True),
        ("~", None),
        ("'1'", "1"),
        ("2024-01-01", "2024-01-01"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("a b", "a b"),
        ("\u00fcber", "\u00fcber"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    (table,) = read_documents(f"key: {text}\n", "config.yml")
    assert table["key"] == value
    assert type(table["key"]) is type(value)


def test_anchors_aliases_and_merge_keys_work() -> None:
    (table,) = read_documents("a: &a {x: 1, y: 2}\nb: *a\nc:\n  <<: *a\n  y: 3\n", "config.yml")
    assert table["b"] == {"x": 1, "y": 2}
    assert table["c"] == {"x": 1, "y": 3}


def test_a_key_that_is_given_twice_may_say_the_same() -> None:
    (table,) = read_documents("a: {x: [1, 2]}\nb: 2\na:\n  x:\n  - 1\n  - 2\n", "config.yml")
    assert table == {"a": {"x": [1, 2]}, "b": 2}


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "~\n", "null\n"])
def test_empty(text: str) -> None:
    assert refusal(text) == "config.yml:1: the recipe is empty; it needs `merge_method`, and `models` or `slices`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "- merge_method: linear\n",
            "config.yml:1: a recipe is a map with keys such as `merge_method`; here is a list",
        ),
        (
            "\nlinear\n",
            "config.yml:2: a recipe is a map with keys such as `merge_method`; here is the single value `linear`",
        ),
        ("a:\n\t- b\n", "config.yml:2: a tab in the indentation; YAML is indented with spaces"),
        ("a:\n  b: 1\n\tc: 2\n", "config.yml:3: a tab in the indentation; YAML is indented with spaces"),
        ("a: 1\nb: 2\na: 3\n", "config.yml:3: key `a` is given twice, first on line 1"),
        ("a: {x: 1}\nb: 2\na: {x: 1, y: 2}\n", "config.yml:3: key `a` is given twice, first on line 1"),
        ("a:\n  b: {c: 1, c: 2}\n", "config.yml:2: key `c` is given twice, first on line 2"),
        ("a: &x [*x]\n", "config.yml:1: alias `*x` stands inside its own anchor"),
        ("a: 1\nb: *x\n", "config.yml:2: alias `*x` has no anchor `&x` before it"),
        ("a: 1\n---\n- b\n", "config.yml:3: a recipe is a map with keys such as `merge_method`; here is a list"),
        ("a: &x 1\n---\nb: *x\n", "config.yml:3: alias `*x` has no anchor `&x` before it"),
        ("a: 1\n[b]: 2\n", "config.yml:2: a key of a map must be a word, not a list or a map"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "config.yml:1: the tag `tag:yaml.org,2002:python/object/apply:os.system`",
        ),
        ("a: !!python/name:os.system x\n", "config.yml:1: the tag `tag:yaml.org,2002:python/name:os.system`"),
        ("a: 1\nb: !!int x\n", "config.yml:2: `x` is not a int"),
        ("a:\n  <<: 3\n", "config.yml:2: `<<` takes a map or a list of maps"),
    ],
)
def test_refused(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(("text", "line"), [("a: [1, 2\n", 2), ("a: 1\nb: }\n", 2), ("a: 'x\n", 2), ("a: b: c\n", 1)])
def test_bad_syntax_has_a_line(text: str, line: int) -> None:
    assert refusal(text).startswith(f"config.yml:{line}: not YAML: ")


def test_control_characters_are_refused() -> None:
    assert refusal("a: \x00\n").startswith("config.yml: not YAML: ")


def test_an_alias_bomb_is_refused_before_it_is_written_out() -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12)]
    message = refusal("\n".join(lines))
    assert message.endswith("aliases that expand to more than 20000 values; write them out")
    assert message.startswith("config.yml:5: ")
    small, large = ("\n".join(lines[:count]) for count in (6, 12))  # of a million values, and of a million million
    assert calls(lambda: refusal(small)) == calls(lambda: refusal(large))


def test_deep_nesting_is_refused() -> None:
    assert refusal("a: " + "[" * 50_000).endswith("nested more than 32 deep")
    deep = "\n".join(["a0: &a0 [[[[[[[[[[x]]]]]]]]]]", *(f"a{i}: &a{i} [[[[*a{i - 1}]]]]" for i in range(1, 10))])
    assert refusal(deep).endswith("nested more than 32 deep")


def test_a_character_of_a_long_recipe_costs_few_calls() -> None:
    lines = [f"  - sources: [{{model: org/name-{i}, layer_range: [{i}, {i + 1}]}}]" for i in range(300)]
    text = "\n".join(["merge_method: passthrough", "slices:", *lines])
    assert calls(lambda: read_documents(text, "config.yml")) < 8 * len(text)  # PyYAML's own parser makes 26


def test_what_libyaml_refuses_and_pyyaml_reads() -> None:
    (table,) = read_documents('a: "\\ud83d\\ude00"\nb: !\n', "config.yml")
    assert table == {"a": "\U0001f600", "b": None}
