"""Whether an id means the same token in two models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mol.errors import CheckpointError
from mol.io.vocabulary import compare_vocabularies, read_vocabulary

if TYPE_CHECKING:
    from pathlib import Path


def write(directory: Path, **files: object) -> Path:
    """Write files whose names have `__` for the dot."""
    directory.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name.replace("__", ".")).write_text(text)
    return directory


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer__json": {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}},
        {"tokenizer__json": {"model": {"vocab": [["a", -1.0], ["b", -2.0], ["<s>", 0.0]]}}},
        {"vocab__json": {"a": 0, "b": 1}, "added_tokens__json": {"<s>": 2}},
        {"vocab__txt": "a\nb\n<s>\n"},
    ],
    ids=["map", "unigram", "slow", "lines"],
)
def test_every_form_of_vocabulary_is_read(tmp_path: Path, files: dict[str, object]) -> None:
    model = write(tmp_path / "model", **files)
    assert read_vocabulary(model) == {"a": 0, "b": 1, "<s>": 2}
    reference = write(tmp_path / "reference", vocab__txt="a\nb\n<s>")
    assert compare_vocabularies(reference, model) == (None, None)


def test_a_token_with_another_id_is_a_problem(tmp_path: Path) -> None:
    donor, other = write(tmp_path / "a", vocab__txt="a\nb\nc"), write(tmp_path / "b", vocab__txt="a\nc\nb")
    problem, _ = compare_vocabularies(donor, other)
    assert problem == "2 of 3 shared tokens have other ids, the first 'c': found 1, wanted 2"


def test_further_tokens_are_no_problem(tmp_path: Path) -> None:
    donor, other = write(tmp_path / "a", vocab__txt="a\nb"), write(tmp_path / "b", vocab__txt="a\nb\nc")
    assert compare_vocabularies(donor, other) == compare_vocabularies(other, donor) == (None, None)


def test_nothing_in_common_is_a_problem(tmp_path: Path) -> None:
    donor, other = write(tmp_path / "a", vocab__txt="a\nb"), write(tmp_path / "b", vocab__txt="c\nd")
    assert compare_vocabularies(donor, other) == ("they share no token", None)


def test_no_tokenizer_is_no_problem(tmp_path: Path) -> None:
    donor, other = write(tmp_path / "a", vocab__txt="a\nb"), write(tmp_path / "b")
    assert compare_vocabularies(donor, other) == (None, None)


def test_a_binary_format_is_compared_as_a_whole(tmp_path: Path) -> None:
    donor, other = write(tmp_path / "a", tokenizer__model="one"), write(tmp_path / "b", tokenizer__model="one")
    assert compare_vocabularies(donor, other) == (None, None)
    (other / "tokenizer.model").write_text("two")
    problem, remark = compare_vocabularies(donor, other)
    assert problem is None
    assert remark == "tokenizer.model differs and its format is not read here: ids were not compared"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer__json", "{"),
        ("tokenizer__json", "[]"),
        ("tokenizer__json", '{"model": {"vocab": {"a": "x"}}}'),
        ("vocab__json", "[1]"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    model = write(tmp_path / "model", **{name: text})
    with pytest.raises(CheckpointError, match=str(model / name.replace("__", "."))):
        read_vocabulary(model)
