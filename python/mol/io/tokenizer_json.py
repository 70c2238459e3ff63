"""Adds tokens to the files of a tokenizer: `tokenizer.json`, and what repeats its added tokens."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from mol.errors import CheckpointError
from mol.io.json_file import read_object
from mol.io.layout import ADDED_TOKENS, TOKENIZER, TOKENIZER_SETTINGS
from mol.io.vocabulary import NewToken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from mol.io.vocabulary import Vocabulary


def add_tokens(vocabulary: Vocabulary, tokens: Iterable[NewToken]) -> dict[str, dict[str, Any]]:
    """Return the files of a tokenizer as they are with more tokens, by name; none is written.

    All added tokens are written into the vocabulary too, with their ids, old ones as well: the tokenizers library
    numbers those that the vocabulary lacks from its length on, whatever the file says. No merge makes the new tokens of
    a BPE model, so texts are split as before; a WordPiece or Unigram model uses them.

    Args:
        vocabulary: the tokenizer; it has a `tokenizer.json`.
        tokens: by id, from the first that is free.

    Raises:
        CheckpointError: ids of a Unigram model have gaps, or a file is damaged.
        OSError: a file cannot be read.
    """
    directory = vocabulary.directory
    path = directory / TOKENIZER
    tokenizer = read_object(path)
    vocab, added = tokenizer["model"]["vocab"], list(tokenizer.get("added_tokens") or ())
    known = {entry["content"] for entry in added}.union(vocab if isinstance(vocab, dict) else (e[0] for e in vocab))
    outside = {token: number for token, number in vocabulary.added.items() if token not in known}
    tokens = [
        *(NewToken(token, number, vocabulary.flags.get(token), None) for token, number in outside.items()),
        *tokens,
    ]
    entries = [{"id": t.number, "content": t.content, **t.flags} for t in tokens if t.flags is not None]
    if isinstance(vocab, dict):
        for entry in added:
            vocab.setdefault(entry["content"], entry["id"])
        vocab.update({token.content: token.number for token in tokens})
    else:
        _extend(path, vocab, added, tokens)
    tokenizer["added_tokens"] = [*added, *entries]
    files = {TOKENIZER: tokenizer}
    if isinstance(vocabulary.settings.get("added_tokens_decoder"), dict):
        settings = copy.deepcopy(vocabulary.settings)
        settings["added_tokens_decoder"] |= {
            str(entry["id"]): {k: entry[k] for k in entry if k != "id"} for entry in entries
        }
        files[TOKENIZER_SETTINGS] = settings
    if (directory / ADDED_TOKENS).exists():
        more = {entry["content"]: entry["id"] for entry in entries}
        files[ADDED_TOKENS] = read_object(directory / ADDED_TOKENS) | more
    return files


def _extend(path: Path, vocab: list[list[Any]], added: Sequence[Mapping[str, Any]], tokens: Sequence[NewToken]) -> None:
    """Append to the list of a Unigram model, in which the position of a token is its id."""
    listed = {entry[0] for entry in vocab}
    behind = {entry["id"]: entry["content"] for entry in added if entry["content"] not in listed}
    scores = {token.number: token.score for token in tokens}
    lowest = min((entry[1] for entry in vocab), default=0.0)
    for number, content in sorted([*behind.items(), *((token.number, token.content) for token in tokens)]):
        if number != len(vocab):
            raise CheckpointError(
                f"{path}: no token has the id {len(vocab)}, and a Unigram model has no gaps; choose the tokenizer of "
                "one model (`tokenizer_source: base`) instead of the union"
            )
        score = scores.get(number)
        vocab.append([content, lowest if score is None else score])
