"""Reads which id each token has, and which tokens are special, from the files of a tokenizer."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol import _rust
from mol.errors import CheckpointError
from mol.io.json_file import found_instead, parse_json, read_json, read_object, read_regular
from mol.io.layout import ADDED_TOKENS, TOKENIZER, TOKENIZER_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

# Formats whose tokens are not read here; files of equal bytes hold the same ids all the same.
_UNREAD: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
_UNREAD_ENDINGS: Final = ("*.tiktoken", "*.spm")

_MOST_IDS: Final = 1 << 24
_AGAIN: Final = "fetch the file again from where it came, or let transformers save the tokenizer"
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")

SPECIAL_ROLES: Final = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
"""What a special token may be for; config.json calls its id `eos_token_id` and so on."""


class NewToken(NamedTuple):
    """A token that the tokenizer of the output gets.

    Attributes:
        content: the token.
        number: its id.
        flags: those of an added token in tokenizer.json; None for one of the vocabulary itself.
        score: of a Unigram model.
    """

    content: str
    number: int
    flags: Mapping[str, Any] | None
    score: float | None


class Content(NamedTuple):
    """What the main file of a tokenizer holds.

    Attributes:
        ids: token -> id.
        added: token -> flags of the tokens that are cut out of a text before the rest is split.
        kind: how tokens spell bytes and spaces ("byte-level", "SentencePiece", "WordPiece"), None where unknown.
        apart: token -> id of added tokens that the model itself lacks.
        scores: by id, of the tokens of a Unigram model itself, which lists them; None of another.
        whole: whether a BPE model takes a word that is a token as it is, without merges, as that of Llama 3 does.
        renumbered: token -> id that it loads with, where the file states another.
    """

    ids: dict[str, int]
    added: dict[str, dict[str, Any]]
    kind: str | None
    apart: Mapping[str, int] = {}
    scores: Sequence[float] | None = None
    whole: bool = False
    renumbered: Mapping[str, int] = {}


class Vocabulary:
    """The tokens of one model, read when they are needed.

    Attributes:
        directory: where the model lies.
    """

    def __init__(self, directory: Path, others: Iterable[Vocabulary] = ()) -> None:
        """Look at nothing yet.

        Args:
            directory: where the model lies.
            others: vocabularies whose main file is not parsed again where this model's has equal bytes.
        """
        self.directory = directory
        self._others = tuple(others)

    @cached_property
    def main(self) -> Path | None:
        """The file that holds the tokens, of those whose format is read."""
        names = (TOKENIZER, "vocab.json", "vocab.txt")
        return next((path for name in names if (path := self.directory / name).exists()), None)

    @cached_property
    def unread(self) -> Path | None:
        """A file that holds tokens in a format that is not read."""
        named = (path for name in _UNREAD if (path := self.directory / name).exists())
        others = (path for ending in _UNREAD_ENDINGS for path in sorted(self.directory.glob(ending)))
        return next(named, None) or next(others, None)

    def check(self) -> None:
        """Refuse a tokenizer whose files are something else, whether or not their format is read.

        Raises:
            CheckpointError: a git-lfs pointer or a web page was saved instead of one.
            OSError: one cannot be read.
        """
        for path in (self.main, self.unread):
            if path is not None and path.is_file():
                with path.open("rb") as file:
                    instead = found_instead(file.read(1024))
                if instead is not None:
                    raise CheckpointError(f"{path} is {instead}")

    @property
    def complete(self) -> bool:
        """Whether `ids` holds every token."""
        return self.main is not None

    @cached_property
    def added(self) -> dict[str, int]:
        """Token -> id of the tokens that stand outside of the main file."""
        found: dict[str, int] = {}
        path = self.directory / ADDED_TOKENS
        if (self.main is None or self.main.name != TOKENIZER) and path.exists():
            found |= _checked(path, read_json(path))
        decoder = self.settings.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            for number, entry in decoder.items():
                token = _content(entry)
                if token is not None and number.isdecimal() and len(number) < 10:
                    found.setdefault(token, int(number))
        return found

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token -> id of all tokens that can be read.

        Raises:
            CheckpointError: a tokenizer file is not what its name says.
            OSError: one cannot be read.
        """
        return self.added | self.content.ids

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Id -> token of all tokens that can be read; of an id with several the last."""
        return {number: token for token, number in self.ids.items()}

    @cached_property
    def flags(self) -> dict[str, dict[str, Any]]:
        """Token -> flags, as tokenizer.json has them, of the tokens that are cut out of a text before the rest."""
        found = {token: dict.fromkeys(_FLAGS, False) | {"normalized": True} for token in self.added}
        found |= self.content.added
        decoder = self.settings.get("added_tokens_decoder")
        for entry in decoder.values() if isinstance(decoder, dict) else ():
            if isinstance(entry, dict) and (token := _content(entry)) is not None and token not in self.content.added:
                found[token] = {flag: entry.get(flag) is True for flag in _FLAGS}
        return found

    @cached_property
    def content(self) -> Content:
        """What the main file holds; nothing where there is none."""
        if self.main is None:
            return Content({}, {}, None)
        for other in self._others:
            if other.main is not None and other.main.name == self.main.name and _are_equal(other.main, self.main):
                return other.content
        readers = {TOKENIZER: _fast, "vocab.json": _table, "vocab.txt": _lines}
        return readers[self.main.name](self.main)

    @cached_property
    def misstated(self) -> str | None:
        """Which ids the main file states that its tokens do not load with; None where all are right."""
        if not (wrong := self.content.renumbered):
            return None
        stated = self.content.ids
        first = ", ".join(f"{token!r} (states {stated[token]}, loads with {wrong[token]})" for token in list(wrong)[:3])
        return f"{self.main} states other ids than {len(wrong)} of its tokens load with: {first}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What tokenizer_config.json holds; empty where there is none."""
        path = self.directory / TOKENIZER_SETTINGS
        return read_object(path) if path.exists() else {}

    @cached_property
    def special(self) -> dict[str, int]:
        """Role -> id of the special tokens that the tokenizer names and whose ids are known."""
        path = self.directory / "special_tokens_map.json"
        named = read_object(path) if path.exists() else {}
        found = {}
        for role in SPECIAL_ROLES:
            token = _content(self.settings.get(f"{role}_token")) or _content(named.get(f"{role}_token"))
            if token is not None and token in self.ids:
                found[role] = self.ids[token]
        return found

    def same_file(self, other: Vocabulary) -> bool:
        """Return whether both models have a file of tokens of equal bytes."""
        for path in (self.main, self.unread):
            twin = None if path is None else other.directory / path.name
            if path is not None and twin is not None and twin.is_file() and _are_equal(path, twin):
                return True
        return False


def read_vocabularies(directories: Iterable[Path]) -> dict[Path, Vocabulary]:
    """Return the vocabularies of models by directory; files of equal bytes are parsed once."""
    found: dict[Path, Vocabulary] = {}
    for directory in directories:
        if directory not in found:
            found[directory] = Vocabulary(directory, found.values())
    return found


def _are_equal(a: Path, b: Path) -> bool:
    import filecmp

    return filecmp.cmp(a, b, shallow=False)


def _content(entry: object) -> str | None:
    """Read a token that is written as a text or as an object with its settings."""
    token = entry.get("content") if isinstance(entry, dict) else entry
    return token if isinstance(token, str) and token else None


def _fast(path: Path) -> Content:
    """Read a `tokenizer.json` of the tokenizers library: BPE, WordPiece and WordLevel map, Unigram lists."""
    data = read_regular(path)
    # Much faster than all of it in Python; what is not as it should be is left to that, and to its words.
    known = _rust.read_vocabulary(data)
    content = parse_json(path, data if known is None else known[2])
    try:
        model = content["model"]
        ids, scores = _tokens(model["vocab"]) if known is None else known[:2]
        added = list(content.get("added_tokens") or ())
        numbers = {token["content"]: token["id"] for token in added}
        flags = {token["content"]: {flag: token.get(flag) is True for flag in _FLAGS} for token in added}
        kind, whole = _kind(content, model), model.get("ignore_merges") is True
        apart = {token: number for token, number in numbers.items() if token not in ids}
        loaded = _loaded(numbers, ids, len(ids if scores is None else scores))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        what = (
            f"lacks `{error.args[0]}`" if isinstance(error, KeyError) else "holds something else where tokens should be"
        )
        raise CheckpointError(f"{path} {what}; {_AGAIN}") from error
    renumbered = {token: number for token, number in loaded.items() if number != numbers[token]}
    return Content(_checked(path, {**ids, **numbers}), flags, kind, apart, scores, whole, renumbered)


def _loaded(added: Iterable[str], ids: Mapping[str, int], size: int) -> dict[str, int]:
    """Number added tokens as the tokenizers library does, which goes by their order and not by the ids of the file."""
    found: dict[str, int] = {}
    free = size
    for token in filter(None, added):
        found[token] = ids.get(token, free)
        free = max(free, found[token] + 1)
    return found


def _tokens(vocab: Any) -> tuple[dict[str, int], list[float] | None]:  # noqa: ANN401 - whatever the file holds
    """Return the ids of a model's tokens, and the scores of a Unigram model, which lists pairs of token and score."""
    if isinstance(vocab, dict):
        return vocab, None
    return {entry[0]: number for number, entry in enumerate(vocab)}, [entry[1] for entry in vocab]


def _kind(content: dict[str, Any], model: dict[str, Any]) -> str | None:
    """Return how the tokens of a `tokenizer.json` spell bytes and spaces."""
    around = json.dumps([content.get("normalizer"), content.get("pre_tokenizer"), content.get("decoder")])
    if model.get("type") == "WordPiece":
        return "WordPiece"
    if '"ByteLevel"' in around:
        return "byte-level"
    return "SentencePiece" if '"Metaspace"' in around or "\\u2581" in around or model.get("byte_fallback") else None


def _table(path: Path) -> Content:
    kind = "byte-level" if path.with_name("merges.txt").exists() else None
    return Content(_checked(path, read_json(path)), {}, kind)


def _lines(path: Path) -> Content:
    try:
        text = read_regular(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}; {_AGAIN}") from error
    lines = text.rstrip("\n").split("\n")
    return Content({line.removesuffix("\r"): i for i, line in enumerate(lines)}, {}, "WordPiece")


def _checked(path: Path, found: object) -> dict[str, int]:
    if not isinstance(found, dict) or not {int}.issuperset(map(type, found.values())):
        raise CheckpointError(f"{path} does not map tokens to ids; {_AGAIN}")
    if found and not 0 <= min(found.values()) <= max(found.values()) < _MOST_IDS:
        raise CheckpointError(f"{path} maps tokens to ids that no vocabulary has; {_AGAIN}")
    return found
