"""Recipes of several documents: which is the result, what it needs before, and what cannot be put in an order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mol.config import MergeConfig, ModelReference
from mol.errors import ConfigError
from tests.config.toolkit import LINEAR, SLERP, TIES

if TYPE_CHECKING:
    from pathlib import Path

FIRST = f"name: first\n{LINEAR}"
SECOND = f"name: second\n{LINEAR.replace('model: b', 'model: first')}"
LAST = SLERP.replace("model: b", "model: second")


def read(*documents: str) -> MergeConfig:
    return MergeConfig.from_yaml("---\n".join(documents), "config.yml")


@pytest.mark.parametrize(
    "documents",
    [
        (FIRST, SECOND, LAST),
        (LAST, SECOND, FIRST),
        (SECOND, f"name: result\n{LAST}", FIRST),
        ("# nothing\n", FIRST, SECOND, LAST, ""),
    ],
)
def test_the_result_is_the_document_without_a_name_or_that_no_other_names(documents: tuple[str, ...]) -> None:
    config = read(*documents)
    assert config.method == "slerp"
    assert {name: stage.method for name, stage in config.stages.items()} == {"first": "linear", "second": "linear"}
    assert list(config.stages) == ["first", "second"]
    assert config.inputs() == (ModelReference("a"), ModelReference("b"))
    assert config.is_stage(ModelReference("second"))
    assert not config.is_stage(ModelReference("second", "v1"))
    assert MergeConfig.from_dict(config.to_dict()) == config
    assert MergeConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize("path", ["./intermediates/second", "/tmp/merges/second", "../second"])
def test_a_path_that_mergekit_multi_puts_before_a_name_is_the_document(path: str) -> None:
    config = read(FIRST, SECOND, LAST.replace("second", path))
    assert config.is_stage(ModelReference("second"))
    assert f"`{path}` is the document `second`: there is no such directory" in config.notes
    assert MergeConfig.from_yaml(config.to_yaml()) == config


def test_a_directory_and_a_repository_are_no_document(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    for name in (str(tmp_path / "second"), "org/second"):
        config = read(FIRST, LAST.replace("model: second", f"model: {name}"))
        assert ModelReference(name) in config.inputs()


def test_a_recipe_in_python_takes_stages_by_name() -> None:
    config = MergeConfig(
        "slerp",
        ["a", "mixed"],
        stages={"mixed": {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 1}}},
    )
    assert config.stages["mixed"].models is not None
    assert config.inputs() == (ModelReference("a"), ModelReference("b"))


def test_a_document_that_nothing_needs_is_noted() -> None:
    config = read(FIRST, f"name: spare\n{TIES}", SECOND, LAST)
    assert list(config.stages) == ["first", "second"]
    assert config.notes == ("the document `spare` has no effect: the result needs it for nothing",)


@pytest.mark.parametrize(
    ("documents", "problem"),
    [
        ((LINEAR, SLERP), "or that no other names; here config.yml:1, config.yml:8 have no `name`"),
        ((FIRST, f"name: other\n{SLERP}"), "here config.yml:1, config.yml:9 are named by no other"),
        (
            (FIRST, LAST.replace("second", "first_")),
            "config.yml:1: no document uses `first`, and one names a model `first_`; did you mean this document?",
        ),
        ((FIRST, LAST.replace("second", "first_+lora")), "one names a model `first_`"),
        ((FIRST, FIRST, LAST), "config.yml:9: two documents have the name `first`"),
        ((FIRST.replace("first", "a+b"), LAST), "`name` of a document is a word without `+` and `@`, not 'a+b'"),
        ((FIRST.replace("first", "7"), LAST), "`name` of a document is a word without `+` and `@`, not 7"),
        ((FIRST.replace("first", "/"), LAST), "`name: /`: there is a directory or file of that name, too"),
        (
            (FIRST.replace("model: b", "model: second"), SECOND, LAST),
            "a document is made of itself: second -> first -> second",
        ),
    ],
)
def test_documents_in_no_order_are_refused(documents: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=r"^invalid recipe config\.yml:") as caught:
        read(*documents)
    assert problem in str(caught.value)


def test_the_problems_of_all_documents_are_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        read(FIRST.replace("weight: 1", "weight: x"), LAST.replace("0.5", "x"))
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "config.yml:7", "config.yml:15",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ([LINEAR], "`stages` is a map from names to recipes, not"),
        ({"first": "a"}, "`first` in `stages` is a recipe, not 'a'"),
    ],
)
def test_stages_that_are_no_recipes(stages: object, problem: str) -> None:
    with pytest.raises(ConfigError, match="invalid recipe") as caught:
        MergeConfig.from_dict({"merge_method": "passthrough", "models": [{"model": "first"}], "stages": stages})
    assert problem in str(caught.value)


THEN = """then:
  merge_method: slerp
  base_model: a
  models: [{model: merged}, {model: a}]
  parameters: {t: 0.3}
"""


def test_then_is_a_document_after_the_recipe() -> None:
    config = read(LINEAR + THEN)
    after = THEN.removeprefix("then:\n").replace("  ", "")
    assert config == read(f"name: merged\n{LINEAR}", after)
    assert config.method == "slerp"
    assert list(config.stages) == ["merged"]
    assert MergeConfig.from_dict(config.to_dict()) == config
    named = read(f"name: mine\n{LINEAR}{THEN.replace('merged', 'mine')}")
    assert list(named.stages) == ["mine"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LINEAR + THEN.replace("merged", "b"), "no step of `then` has `merged` among its models"),
        (LINEAR + "then: slerp\n", "`then` is a recipe for what is made above, or a list of recipes, not 'slerp'"),
        (LINEAR + "then: [3]\n", "`then` is a recipe for what is made above, or a list of recipes, not 3"),
        (LINEAR + THEN + "---\n" + LINEAR, "`then` in one of several documents; write that step as a document, too"),
        (LINEAR + THEN + "stages: {}\n", "`stages` and `then` in one recipe; name every step in `stages`"),
    ],
)
def test_what_then_refuses(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert problem in str(caught.value)
