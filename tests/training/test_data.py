"""Texts as rows, and batches of rows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader

from mol.errors import ConfigError
from mol.training import create_simple_dataset
from mol.training.data import collate_rows, make_loader
from tests.seed_models import CHAT, gpt2_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """One without a token to pad with, as GPT-2 has it."""
    return gpt2_tokenizer()


class Column:
    """What an object of `datasets` has of it that is used here."""

    column_names = ("id", "text")

    def __getitem__(self, name: str) -> list[str]:
        assert name == "text"
        return list(CHAT)


def test_texts_become_rows_of_one_length_whose_padding_has_no_label(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = create_simple_dataset(CHAT, tokenizer)
    batch = next(iter(DataLoader(dataset, batch_size=3)))  # torch's own collation takes rows of one length only
    assert (
        batch["input_ids"].shape == batch["labels"].shape == (3, max(len(tokenizer(text).input_ids) for text in CHAT))
    )
    for text, ids, mask, labels in zip(CHAT, *batch.values(), strict=True):
        assert ids[mask.bool()].tolist() == labels[mask.bool()].tolist() == tokenizer(text).input_ids
        assert labels[~mask.bool()].eq(-100).all()


def test_files_and_datasets_are_read(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    plain, objects = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("\n\n".join(CHAT), encoding="utf-8")
    objects.write_text("\n".join(f'{{"text": "{text}", "id": 1}}' for text in CHAT), encoding="utf-8")
    wanted = [row["input_ids"].tolist() for row in create_simple_dataset(CHAT, tokenizer)]
    for given in (plain, [objects], Column()):
        assert [row["input_ids"].tolist() for row in create_simple_dataset(given, tokenizer)] == wanted
    assert len(create_simple_dataset([plain, objects, "and a text"], tokenizer)) == 7


def test_only_a_line_break_ends_a_line(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    plain, objects, other = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.txt"
    plain.write_text("one\u2028two\x0cthree\n", encoding="utf-8")
    objects.write_text('{"text": "one\u2028two\x85three"}\r\n', encoding="utf-8")
    assert len(create_simple_dataset([plain, objects], tokenizer)) == 2
    other.write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match=r"c\.txt is no text in UTF-8"):
        create_simple_dataset(other, tokenizer)


def test_long_texts_are_cut_and_a_warning_says_how_much(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    total = sum(len(tokenizer(text).input_ids) for text in CHAT)
    with caplog.at_level(logging.WARNING, "mol"):
        dataset = create_simple_dataset(CHAT, tokenizer, max_length=5)
    assert {len(row["input_ids"]) for row in dataset} == {5}
    says = f"3 of 3 texts are longer than max_length, 5 tokens, and cut: {total - 15} of {total} tokens are left out"
    assert caplog.messages == [says]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("one text", "texts are one string, wanted several"),
        ([], "there is no text"),
        (["a", 3], "a text is a int, wanted strings"),
        (3, "texts are a int, wanted a list of strings or of files"),
        (["a", ""], r"text 1 \(''\) has no token"),
    ],
)
def test_what_is_no_text_is_refused(given: Any, says: str, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match=says):
        create_simple_dataset(given, tokenizer)


def test_a_line_that_is_no_object_is_named(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"other": 1}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 2: .* is no JSON object with a `text`"):
        create_simple_dataset(path, tokenizer)
    with pytest.raises(ConfigError, match="max_length is 1, wanted a whole number of at least 2"):
        create_simple_dataset(["a"], tokenizer, max_length=1)


def test_rows_are_padded_to_the_longest_of_their_batch_and_no_further() -> None:
    rows = [
        {"input_ids": [1, 2, 3, 0, 0], "attention_mask": [1, 1, 1, 0, 0], "labels": [1, 2, 3, -100, -100], "domain": 1},
        {"input_ids": [4, 5], "attention_mask": [1, 1], "labels": [4, 5], "domain": 0},
    ]
    batch = collate_rows(rows)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 2, 3], [4, 5, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[1, 2, 3], [4, 5, -100]],
        "domain": [1, 0],
    }
    assert collate_rows([{"input_ids": [1, 2]}, {"input_ids": [3]}])["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_a_loader_is_taken_as_it_is_and_others_are_made(tokenizer: PreTrainedTokenizerBase) -> None:
    loader: Any = DataLoader([{"input_ids": torch.ones(3)}])
    assert make_loader(loader, 4, lambda: tokenizer, shuffle=True) is loader
    assert len(make_loader(list(CHAT), 2, lambda: tokenizer, shuffle=False)) == 2
    assert len(make_loader(Column(), 2, lambda: tokenizer, shuffle=False)) == 2
    assert len(make_loader([{"input_ids": [1, 2]}] * 5, 2, lambda: tokenizer, shuffle=False)) == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (iter([]), "the data are a list_iterator, wanted a DataLoader of batches, a dataset or list of rows, or texts"),
        ([], "there are no data: not a single row"),
        ([(1, 2)], "a row is a tuple, wanted a dictionary with `input_ids`"),
        (
            [{"input_ids": torch.ones(2, 3)}],
            r"`input_ids` of a row are \(2, 3\), wanted one axis; batches are given in",
        ),
    ],
)
def test_other_data_are_refused(given: Any, says: str, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match=says):
        make_loader(given, 2, lambda: tokenizer, shuffle=False)
