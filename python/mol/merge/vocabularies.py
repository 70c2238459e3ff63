"""Checks that a row of an embedding means one token in all models of a merge."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from mol.errors import MergeError
from mol.regex import regex
from mol.structure.model_config import stated_vocab_size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mol.io.vocabulary import Vocabulary
    from mol.merge.planned import PlannedMerge

# Names that a vocabulary gives to ids which no text uses: the row of one means nothing yet.
_SPARE: Final = regex(r"reserved|unused|placeholder|dummy|<\|?extra_\d|^\[PAD_?\d+\]$", re.IGNORECASE)


class VocabularyRemarks(NamedTuple):
    """What there is to say about vocabularies that may be merged, one line each."""

    notes: tuple[str, ...]
    warnings: tuple[str, ...]


class _Differences(NamedTuple):
    """How the tokens of one model differ from those of the models before it, one line each."""

    moved: list[str]
    renamed: list[str]
    spare: list[str]


def check_vocabularies(
    planned: PlannedMerge, vocabularies: Mapping[Path, Vocabulary], *, allow_crimes: bool
) -> VocabularyRemarks:
    """Refuse models for which a row of the embedding means different tokens, where rows are paired by number.

    Tokens that only one of two models has are no problem: nothing contradicts the other.

    Args:
        planned: the merge.
        vocabularies: by directory, of the donor and the other models, in this order.
        allow_crimes: warn where one id has two tokens, instead of refusing.

    Raises:
        MergeError: listing the models.
        CheckpointError: a tokenizer file is not what its name says.
        OSError: one cannot be read.
    """
    donor = planned.donor
    names = {donor.directory: donor.name}
    for source in planned.sources:
        names.setdefault(source.directory, source.name)
    if len(names) > 1 and not any(map(_has_tokens, vocabularies.values())):
        # A model of images or sounds alone has no vocabulary.
        unknown = stated_vocab_size(donor.config) is not None
        return VocabularyRemarks(("no model has a tokenizer: ids were not compared",) if unknown else (), ())
    donors = vocabularies[donor.directory]
    table = _Table()
    problems, notes, warnings = [], [], []
    for directory, vocabulary in vocabularies.items():
        name = names[directory]
        if vocabulary is not donors:
            remark = _incomparable(donors, vocabulary, donor.name)
            notes += [f"{name}: {remark}"] if remark else []
        found = table.add(name, vocabulary)
        problems += [f"{name}: {line}" for line in found.moved]
        if allow_crimes:
            warnings += [f"{name}: {line}, as allowed" for line in found.renamed]
        else:
            problems += [f"{name}: {line}; `allow_crimes` merges these rows all the same" for line in found.renamed]
        warnings += [f"{name}: {line}" for line in found.spare]
    if problems:
        raise MergeError.listing(
            f"a token must have one id in all models, and these disagree with {donor.name}; with `tokenizer_source: "
            "base` (or `union`, or a model) rows are paired by token",
            problems,
        )
    return VocabularyRemarks(tuple(notes), tuple(warnings))


class _Table:
    """The tokens of the models that were added, by token and by id."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._tokens: dict[int, list[str]] = {}
        self._owner: dict[str, str] = {}
        self._seen: list[tuple[str, Vocabulary]] = []

    def add(self, name: str, vocabulary: Vocabulary) -> _Differences:
        """Compare a model with those before it, then add it."""
        found = _Differences([], [], [])
        if vocabulary.main is not None and any(
            vocabulary.same_file(other) and vocabulary.added == other.added for _, other in self._seen
        ):
            return found
        if len(self._seen) == 1:  # not before, since large files need not be read while all are the same
            self._take(*self._seen[0])
        if self._seen:
            found = self._compare(vocabulary)
            self._take(name, vocabulary)
        self._seen.append((name, vocabulary))
        return found

    def _take(self, name: str, vocabulary: Vocabulary) -> None:
        for token, number in vocabulary.ids.items():
            if token not in self._ids:
                self._ids[token] = number
                self._tokens.setdefault(number, []).append(token)
                self._owner[token] = name

    def _compare(self, vocabulary: Vocabulary) -> _Differences:
        theirs = vocabulary.ids
        found = _Differences([], [], [])
        shared = [token for token in theirs if token in self._ids]
        moved = [token for token in shared if theirs[token] != self._ids[token]]
        if moved:
            token = min(moved, key=theirs.__getitem__)
            found.moved.append(
                f"{len(moved)} of {len(shared)} shared tokens have other ids, "
                f"the first {token!r}: found {theirs[token]}, wanted {self._ids[token]}"
            )
        elif theirs and self._ids and not shared and vocabulary.complete and self._seen[0][1].complete:
            found.moved.append("they share no token")
            return found
        second_names = {theirs[token] for token in shared}
        renamed: dict[bool, list[tuple[int, str]]] = {True: [], False: []}
        for token, number in theirs.items():
            if token not in self._ids and number in self._tokens and number not in second_names:
                renamed[self._is_spare(number, token)].append((number, token))
        if renamed[False]:
            count = len(renamed[False])
            found.renamed.append(
                f"{count} id{'s mean other tokens' if count > 1 else ' means another token'}, "
                f"the first {self._quoted(*min(renamed[False]))}"
            )
        if renamed[True]:
            found.spare.append(
                f"{len(renamed[True])} of its ids mean a token in one model and none in another, whose rows dilute it; "
                f"the first {self._quoted(*min(renamed[True]))}"
            )
        return found

    def _is_spare(self, number: int, token: str) -> bool:
        return any(_SPARE.search(text) for text in (token, *self._tokens[number]))

    def _quoted(self, number: int, token: str) -> str:
        ours = self._tokens[number][0]
        return f"{number}: {token!r} here, {ours!r} in {self._owner[ours]}"


def _has_tokens(vocabulary: Vocabulary) -> bool:
    return vocabulary.main is not None or vocabulary.unread is not None or bool(vocabulary.added)


def _incomparable(donor: Vocabulary, other: Vocabulary, name: str) -> str | None:
    """Return why the ids of two models could not be compared in full, None where they were."""
    if (donor.complete and other.complete) or other.same_file(donor):
        return None
    reasons = []
    for vocabulary, who in ((other, "it"), (donor, name)):
        if not vocabulary.complete:
            file = vocabulary.unread
            what = "no tokenizer" if file is None else f"{file.name}, whose format is not read here"
            reasons.append(f"{who} has {what}")
    return f"its ids were not compared with those of {name}: {' and '.join(reasons)}"
