"""Which id each token has, and which tokens are special."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mol.errors import CheckpointError
from mol.io.vocabulary import Vocabulary, read_vocabularies

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
        {"vocab__txt": "a\r\nb\r\n<s>\r\n"},
        {
            "tokenizer__json": {"model": {"vocab": {"a": 0, "b": 1}}},
            "tokenizer_config__json": {"added_tokens_decoder": {"2": {"content": "<s>"}}},
        },
    ],
    ids=["map", "unigram", "slow", "lines", "lines of Windows", "added in the settings"],
)
def test_every_form_of_vocabulary_is_read(tmp_path: Path, files: dict[str, object]) -> None:
    vocabulary = Vocabulary(write(tmp_path / "model", **files))
    assert vocabulary.ids == {"a": 0, "b": 1, "<s>": 2}
    assert vocabulary.complete


def test_of_a_format_that_is_not_read_the_added_tokens_are_known(tmp_path: Path) -> None:
    vocabulary = Vocabulary(write(tmp_path / "model", tokenizer__model="binary", added_tokens__json={"<|im_end|>": 7}))
    assert not vocabulary.complete
    assert vocabulary.unread == tmp_path / "model" / "tokenizer.model"
    assert vocabulary.ids == {"<|im_end|>": 7}
    assert Vocabulary(write(tmp_path / "qwen", qwen__tiktoken="")).unread == tmp_path / "qwen" / "qwen.tiktoken"


def test_models_with_a_file_in_common_keep_what_each_adds_to_it(tmp_path: Path) -> None:
    vocab = {"vocab__json": {"a": 0, "b": 1}}
    one = write(tmp_path / "one", **vocab, added_tokens__json={"<x>": 2})
    two = write(tmp_path / "two", **vocab, added_tokens__json={"<y>": 2})
    other = write(tmp_path / "other", vocab__json={"b": 0, "a": 1})
    found = read_vocabularies([one, two, other, one])
    assert [vocabulary.ids for vocabulary in found.values()] == [
        {"a": 0, "b": 1, "<x>": 2}, {"a": 0, "b": 1, "<y>": 2}, {"a": 1, "b": 0},
    ]  # fmt: skip


def test_special_tokens_are_named_by_the_settings_and_else_by_their_map(tmp_path: Path) -> None:
    files = {
        "vocab__txt": "a\n<s>\n</s>\n<pad>",
        "tokenizer_config__json": {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "missing"},
        "special_tokens_map__json": {"eos_token": "a", "pad_token": {"content": "<pad>"}},
    }
    assert Vocabulary(write(tmp_path / "model", **files)).special == {"bos": 1, "eos": 2, "pad": 3}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer__json", "{"),
        ("tokenizer__json", "[]"),
        ("tokenizer__json", "[" * 100_000),
        ("tokenizer__json", '{"model": {"vocab": {"a": "x"}}}'),
        ("tokenizer__json", '{"model": {"vocab": {"a": 1' + "0" * 5000 + "}}}"),
        ("vocab__json", "[1]"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    model = write(tmp_path / "model", **{name: text})
    with pytest.raises(CheckpointError, match=str(model / name.replace("__", "."))):
        _ = Vocabulary(model).ids


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "holds something else where tokens should be"),
        ('{"model": {}}', "lacks `vocab`"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "b"}]}', "lacks `id`"),
        ('{"model": {"vocab": {"a": -1}}}', "maps tokens to ids that no vocabulary has"),
    ],
)
def test_what_is_wrong_with_a_tokenizer_is_said_without_python(tmp_path: Path, text: str, says: str) -> None:
    model = write(tmp_path / "model", tokenizer__json=text)
    with pytest.raises(CheckpointError) as caught:
        _ = Vocabulary(model).ids
    assert says in str(caught.value)
    assert "fetch the file again" in str(caught.value)
    assert "Error(" not in str(caught.value)
