"""Reads which id each token has from tokenizer files, and tells whether two models mean the same by an id."""

from __future__ import annotations

import filecmp
import json
from typing import TYPE_CHECKING, Any

from mol.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def read_vocabulary(directory: Path) -> dict[str, int] | None:
    """Read token -> id of a model, or None where it has no tokenizer or one in a binary format.

    Raises:
        CheckpointError: a tokenizer file is not what its name says.
    """
    for name, reader in (("tokenizer.json", _fast), ("vocab.json", _table), ("vocab.txt", _lines)):
        path = directory / name
        if path.is_file():
            return reader(path)
    return None


def compare_vocabularies(donor: Path, other: Path) -> tuple[str | None, str | None]:
    """Tell why an embedding row of one model means another token in the other.

    Tokens that only one of the two has are no problem: nothing contradicts the other.

    Args:
        donor: directory of the model whose tokenizer the merge gets.
        other: directory of another model.

    Returns:
        The reason, None if they agree, and a remark where that cannot be known.

    Raises:
        CheckpointError: a tokenizer file is not what its name says.
    """
    both = [name for name in _FILES if (donor / name).is_file() and (other / name).is_file()]
    if both and filecmp.cmp(donor / both[0], other / both[0], shallow=False):
        return None, None
    ours, theirs = read_vocabulary(donor), read_vocabulary(other)
    if ours is None or theirs is None:
        return None, f"{both[0]} differs and its format is not read here: ids were not compared" if both else None
    shared = [token for token in theirs if token in ours]
    moved = [token for token in shared if theirs[token] != ours[token]]
    if moved:
        token = min(moved, key=theirs.__getitem__)
        return (
            f"{len(moved)} of {len(shared)} shared tokens have other ids, "
            f"the first {token!r}: found {theirs[token]}, wanted {ours[token]}"
        ), None
    return ("they share no token" if ours and theirs and not shared else None), None


def _read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _fast(path: Path) -> dict[str, int]:
    """Read a `tokenizer.json` of the tokenizers library: BPE, WordPiece and WordLevel map, Unigram lists."""
    content = _read_json(path)
    try:
        vocab = content["model"]["vocab"]
        found = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
        found.update({token["content"]: token["id"] for token in content.get("added_tokens") or ()})
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a tokenizer of the tokenizers library: {error!r}") from error
    return _checked(path, found)


def _table(path: Path) -> dict[str, int]:
    found = _checked(path, _read_json(path))
    added = path.with_name("added_tokens.json")
    return found | _checked(added, _read_json(added)) if added.is_file() else found


def _lines(path: Path) -> dict[str, int]:
    try:
        return {line: i for i, line in enumerate(path.read_text("utf-8").rstrip("\n").split("\n"))}
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from error


def _checked(path: Path, found: object) -> dict[str, int]:
    if not isinstance(found, dict) or not all(isinstance(i, int) for i in found.values()):
        raise CheckpointError(f"{path} does not map tokens to ids")
    return found
