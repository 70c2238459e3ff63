"""A row of an embedding means one token in all models of a merge, and where that is not known it is reported."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from mol.errors import CheckpointError, MergeError
from mol.merge import plan_recipe
from tests.merge.models import TOKENIZER, llama_config, make_llama
from tests.merge.toolkit import linear

if TYPE_CHECKING:
    from pathlib import Path

    from mol.merge.planned import PlannedMerge


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def renamed(**names: str) -> dict[str, Any]:
    """The tokenizer of the tiny models with some tokens called otherwise."""
    vocab = {names.get(token, token): number for token, number in TOKENIZER["model"]["vocab"].items()}
    return {"model": {"vocab": vocab}, "added_tokens": []}


def models(tmp_path: Path, *files: dict[str, Any]) -> None:
    """Write models a, b, c ...; None for a file leaves it out."""
    for seed, (name, of_one) in enumerate(zip("abcd", files, strict=False)):
        make_llama(tmp_path / name, seed, **{key: content for key, content in of_one.items() if content is not None})
        for key in (key for key, content in of_one.items() if content is None):
            (tmp_path / name / key.replace("__", ".")).unlink()


def plan(count: int, **more: Any) -> PlannedMerge:  # noqa: ANN401
    return plan_recipe(linear(*[0.5] * count, **more))


def refusal(count: int, **more: Any) -> str:  # noqa: ANN401
    with pytest.raises(MergeError) as caught:
        plan(count, **more)
    return str(caught.value)


def test_equal_vocabularies_need_no_word(tmp_path: Path) -> None:
    spaced = json.dumps(TOKENIZER, indent=4)
    models(tmp_path, {}, {}, {"tokenizer__json": spaced})
    planned = plan(3)
    assert not [line for line in (*planned.notes, *planned.warnings) if "id" in line.split()]


def test_one_id_with_two_tokens_is_refused(tmp_path: Path) -> None:
    models(
        tmp_path,
        {"tokenizer__json": renamed(token11="<|im_end|>")},
        {"tokenizer__json": renamed(token11="<|end_of_turn|>")},
    )
    line = "b: 1 id means another token, the first 11: '<|end_of_turn|>' here, '<|im_end|>' in a"
    assert line in refusal(2)
    assert any(warning.startswith(line) for warning in plan(2, allow_crimes=True).warnings)


@pytest.mark.parametrize("file", ["added_tokens__json", "tokenizer_config__json"])
def test_added_tokens_are_compared_next_to_files_of_equal_bytes(tmp_path: Path, file: str) -> None:
    def added(token: str) -> dict[str, Any]:
        content = {token: 12} if file.startswith("added") else {"added_tokens_decoder": {"12": {"content": token}}}
        return {"tokenizer__json": None, "tokenizer__model": "binary", file: content}

    models(tmp_path, added("<|im_end|>"), added("<|end_of_turn|>"))
    assert "12: '<|end_of_turn|>' here, '<|im_end|>' in a" in refusal(2)


def test_models_are_compared_with_each_other_and_not_with_the_donor_alone(tmp_path: Path) -> None:
    def longer(token: str) -> dict[str, Any]:
        return {"tokenizer__json": TOKENIZER | {"added_tokens": [{"id": 12, "content": token}]}}

    models(tmp_path, {}, longer("<|im_end|>"), longer("<|end_of_turn|>"))
    assert "c: 1 id means another token, the first 12: '<|end_of_turn|>' here, '<|im_end|>' in b" in refusal(3)


def test_a_spare_id_that_another_model_uses_is_worth_a_warning(tmp_path: Path) -> None:
    models(
        tmp_path,
        {"tokenizer__json": renamed(token11="<|reserved_special_token_0|>")},
        {"tokenizer__json": renamed(token11="<|im_end|>")},
    )
    (warning,) = plan(2).warnings
    assert "11: '<|im_end|>' here, '<|reserved_special_token_0|>' in a" in warning


def test_an_id_may_have_a_second_name(tmp_path: Path) -> None:
    second = TOKENIZER | {"added_tokens": [{"id": 11, "content": "<|im_end|>"}]}
    models(tmp_path, {}, {"tokenizer__json": second})
    assert not plan(2).warnings


def test_a_token_with_another_id_and_nothing_in_common_are_refused(tmp_path: Path) -> None:
    models(tmp_path, {}, {"tokenizer__json": renamed(token3="token4", token4="token3")})
    assert "b: 2 of 12 shared tokens have other ids, the first 'token4': found 3, wanted 4" in refusal(2)
    other = {"model": {"vocab": {f"other{i}": i for i in range(12)}}}
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(other))
    assert "b: they share no token" in refusal(2)


BINARY = {"tokenizer__json": None, "tokenizer__model": "binary"}


@pytest.mark.parametrize(
    ("first", "second", "remark"),
    [
        ({}, BINARY, "it has tokenizer.model, whose format is not read here"),
        (BINARY, {}, "a has tokenizer.model, whose format is not read here"),
        (BINARY, BINARY | {"tokenizer__model": "other"}, "it has tokenizer.model, whose format is not read here and a"),
        ({}, {"tokenizer__json": None}, "it has no tokenizer"),
        ({"tokenizer__json": None}, {}, "a has no tokenizer"),
        ({}, {"tokenizer__json": None, "tekken__json": {}}, "it has tekken.json, whose format is not read here"),
    ],
)
def test_where_ids_were_not_compared_it_is_said(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], remark: str
) -> None:
    models(tmp_path, first, second)
    start = f"b: its ids were not compared with those of a: {remark}"
    assert any(note.startswith(start) for note in plan(2).notes)


@pytest.mark.parametrize(
    "second", [BINARY | {"tokenizer__model": "other"}, {"tokenizer__json": None, "tekken__json": {}}]
)
def test_rows_that_a_recipe_wants_by_token_and_gets_by_number_are_warned_of(
    tmp_path: Path, second: dict[str, Any]
) -> None:
    models(tmp_path, BINARY, second)
    (warning,) = plan(2, tokenizer_source="base").warnings
    file = next(name.replace("__", ".") for name, content in second.items() if content is not None)
    assert warning == (
        f"b has {file}, whose format is not read here, so rows of b and a are not paired by token but by number; with "
        "a tokenizer.json they would be, which transformers writes: "
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )


def test_no_tokenizer_anywhere_is_said_once_and_not_of_models_without_a_vocabulary(tmp_path: Path) -> None:
    models(tmp_path, *[{"tokenizer__json": None}] * 3)
    line = "no model has a tokenizer: ids were not compared"
    assert plan(3).notes.count(line) == 1
    seeing = {key: value for key, value in llama_config().items() if key != "vocab_size"}
    for name in "abc":
        (tmp_path / name / "config.json").write_text(json.dumps(seeing))
    assert line not in plan(3).notes


def test_a_file_of_equal_bytes_is_enough(tmp_path: Path) -> None:
    models(tmp_path, BINARY, BINARY)
    assert not any("compared" in note for note in plan(2).notes)
    shutil.copy(tmp_path / "a" / "tokenizer.model", tmp_path / "b" / "tokenizer.model")
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    assert not any("compared" in note for note in plan(2).notes)


@pytest.mark.parametrize("file", ["tokenizer__json", "tokenizer__model"])
def test_a_pointer_instead_of_a_tokenizer_is_refused_and_not_copied(tmp_path: Path, file: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n"
    models(tmp_path, {"tokenizer__json": None} | {file: pointer})
    with pytest.raises(CheckpointError, match=r"a/tokenizer\.\w+ is a git-lfs pointer for a file of 500 kB"):
        plan(1)


# tokenizer_source: union


def test_the_union_of_equal_vocabularies_is_the_bases_tokenizer(tmp_path: Path) -> None:
    models(tmp_path, {}, {"tokenizer__json": json.dumps(TOKENIZER, indent=4)})
    planned = plan(2, tokenizer_source="union")
    assert "`tokenizer_source: union`: a has all tokens, so its tokenizer is taken" in planned.notes
    assert planned.plan.to_json() == plan(2, tokenizer_source="base").plan.to_json()


def test_a_union_needs_the_tokens_of_every_model(tmp_path: Path) -> None:
    longer = TOKENIZER | {"added_tokens": [{"id": 12, "content": "<new>"}]}
    models(tmp_path, {}, {"tokenizer__json": longer}, {"tokenizer__json": None}, BINARY)
    text = refusal(4, tokenizer_source="union")
    assert "c has no tokenizer; tokens are added to a tokenizer.json, which transformers writes" in text
    assert "d has tokenizer.model, whose format is not read here; tokens are added to a tokenizer.json" in text


def test_the_rows_of_a_nested_vocabulary_count(tmp_path: Path) -> None:
    flat = llama_config()
    nested = {key: flat.pop(key) for key in ("vocab_size", "num_hidden_layers")}
    longer = TOKENIZER | {"added_tokens": [{"id": 12, "content": "<new>"}]}
    config = flat | {"text_config": nested}
    models(tmp_path, {"config__json": config}, {"config__json": config, "tokenizer__json": longer})
    planned = plan(2, tokenizer_source="b")
    assert (planned.model_config["text_config"]["vocab_size"], "vocab_size" in planned.model_config) == (13, False)
