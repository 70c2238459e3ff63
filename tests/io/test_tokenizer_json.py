"""Tokens that are added to the files of a tokenizer: what was there stays as it was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mol.errors import CheckpointError
from mol.io.tokenizer_json import add_tokens
from mol.io.vocabulary import NewToken, Vocabulary

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def extended(directory: Path, text: str, *tokens: NewToken, **files: object) -> tuple[str, dict[str, Any]]:
    (directory / "tokenizer.json").write_text(text)
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return add_tokens(Vocabulary(directory), tokens)


def test_what_was_there_stays_as_it_was_written(tmp_path: Path) -> None:
    kept = '"model":{"dropout":null,"x":1.10,"vocab":{"\\u0120a": 0,\n "b" : 1'
    text, files = extended(
        tmp_path,
        '{"version":"1.0",' + kept + '}, "merges":["\\u0120 a"]}, "added_tokens":[{"id": 2, "content": "<s>"}]}',
        NewToken("new", 3, None, None),
        NewToken("<é>", 4, FLAGS, None),
    )
    assert text.startswith('{"version":"1.0",' + kept)
    found = json.loads(text)
    # The old added token is now in the vocabulary too, or the tokenizers library would number it by its position.
    assert found["model"]["vocab"] == {"\u0120a": 0, "b": 1, "<s>": 2, "new": 3, "<é>": 4}
    assert found["model"]["merges"] == ["\u0120 a"]
    assert found["added_tokens"] == [{"id": 2, "content": "<s>"}, {"id": 4, "content": "<é>", **FLAGS}]
    assert files == {}


def test_tokens_of_the_settings_come_before_the_new_ones(tmp_path: Path) -> None:
    decoder = {"1": {"content": "<x>", **FLAGS}}
    text, files = extended(
        tmp_path,
        '{"model": {"vocab": {"a": 0}}}',
        NewToken("<y>", 2, FLAGS, None),
        tokenizer_config={"added_tokens_decoder": decoder},
    )
    assert json.loads(text) == {
        "model": {"vocab": {"a": 0, "<x>": 1, "<y>": 2}},
        "added_tokens": [{"id": number, "content": token, **FLAGS} for number, token in ((1, "<x>"), (2, "<y>"))],
    }
    assert files["tokenizer_config.json"]["added_tokens_decoder"] == {**decoder, "2": {"content": "<y>", **FLAGS}}


def test_a_list_with_scores_gets_the_new_ones_behind_its_own(tmp_path: Path) -> None:
    text = '{"model": {"vocab": [["<unk>", 0], ["a", -1.2500]]}, "added_tokens": [{"id": 2, "content": "<s>"}]}'
    found, _ = extended(tmp_path, text, NewToken("b", 3, None, -3.5), NewToken("c", 4, None, None))
    # A token without a score is as unlikely as the least likely one.
    assert '"vocab":[["<unk>", 0], ["a", -1.2500],["<s>", -1.25], ["b", -3.5], ["c", -1.25]]' in found
    with pytest.raises(CheckpointError, match="no token has the id 3, and a Unigram model has no gaps"):
        extended(tmp_path, text, NewToken("b", 4, None, -3.5))


def test_a_file_that_the_tokenizers_library_cannot_read_is_refused(tmp_path: Path) -> None:
    # Python reads NaN, JSON has none.
    with pytest.raises(CheckpointError, match="so no token can be added to it"):
        extended(tmp_path, '{"model": {"vocab": {"a": 0}, "dropout": NaN}}', NewToken("b", 1, None, None))
