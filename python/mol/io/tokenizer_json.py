"""Adds tokens to the files of a tokenizer: `tokenizer.json`, and what repeats its added tokens."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from mol import _rust
from mol.errors import CheckpointError
from mol.io.json_file import read_object, read_regular
from mol.io.layout import ADDED_TOKENS, TOKENIZER, TOKENIZER_SETTINGS
from mol.io.vocabulary import NewToken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from mol.io.vocabulary import Vocabulary


def add_tokens(vocabulary: Vocabulary, tokens: Iterable[NewToken]) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the files of a tokenizer with more tokens; none is written.

    All added tokens are written into the vocabulary too, with their ids, old ones as well: the tokenizers library
    numbers those that the vocabulary lacks from its length on, whatever the file says. No merge makes the new tokens of
    a BPE model, so texts are split as before; a WordPiece or Unigram model uses them.

    Args:
        vocabulary: the tokenizer; it has a `tokenizer.json`.
        tokens: by id, from the first that is free.

    Returns:
        The text of `tokenizer.json`, in which all else is as it was, and the content of other files by their names.

    Raises:
        CheckpointError: ids of a Unigram model have gaps, or a file is damaged.
        OSError: a file cannot be read.
    """
    directory, content = vocabulary.directory, vocabulary.content
    path = directory / TOKENIZER
    outside = {token: number for token, number in vocabulary.added.items() if token not in content.ids}
    tokens = [
        *(NewToken(token, number, vocabulary.flags.get(token), None) for token, number in outside.items()),
        *tokens,
    ]
    entries = [{"id": t.number, "content": t.content, **t.flags} for t in tokens if t.flags is not None]
    numbers = {**content.apart, **{token.content: token.number for token in tokens}}
    scores = {token.content: token.score for token in tokens if token.score is not None}
    more = numbers if content.scores is None else _listed(path, content.scores, numbers, scores)
    text = _rust.extend_vocabulary(read_regular(path), json.dumps(more)[1:-1], json.dumps(entries)[1:-1])
    if text is None:
        raise CheckpointError(f"{path} is not a tokenizer of the tokenizers library, so no token can be added to it")
    files = {}
    if isinstance(vocabulary.settings.get("added_tokens_decoder"), dict):
        settings = copy.deepcopy(vocabulary.settings)
        settings["added_tokens_decoder"] |= {
            str(entry["id"]): {k: entry[k] for k in entry if k != "id"} for entry in entries
        }
        files[TOKENIZER_SETTINGS] = settings
    if (directory / ADDED_TOKENS).exists():
        added = {entry["content"]: entry["id"] for entry in entries}
        files[ADDED_TOKENS] = read_object(directory / ADDED_TOKENS) | added
    return text, files


def _listed(
    path: Path, listed: Sequence[float], numbers: Mapping[str, int], scores: Mapping[str, float]
) -> list[tuple[str, float]]:
    """Return what comes behind the list of a Unigram model, in which the position of a token is its id."""
    lowest = min(listed, default=0.0)
    tokens = sorted(numbers, key=numbers.__getitem__)
    for number, token in enumerate(tokens, len(listed)):
        if numbers[token] != number:
            raise CheckpointError(
                f"{path}: no token has the id {number}, and a Unigram model has no gaps; choose the tokenizer of "
                "one model (`tokenizer_source: base`) instead of the union"
            )
    return [(token, scores.get(token, lowest)) for token in tokens]
