"""Decides which token each row of the output's vocabulary is for, and which row of each model means the same."""

from __future__ import annotations

from itertools import filterfalse, repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from mol.io.json_file import read_object
from mol.io.layout import CONFIG, TOKENIZER
from mol.io.vocabulary import NewToken
from mol.structure.model_config import stated_vocab_size
from mol.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mol.config.merge_config import MergeConfig, ModelReference
    from mol.config.tokenizer import TokenRule
    from mol.io.checkpoint import Checkpoint
    from mol.io.vocabulary import Vocabulary

    Ids: TypeAlias = NDArray[np.int64]
    Tokens: TypeAlias = NDArray[np.object_]

_SAVE_FAST: Final = (
    "tokens are added to a tokenizer.json, which transformers writes: AutoTokenizer.from_pretrained(DIR)"
    ".save_pretrained(DIR)"
)
_RENUMBER: Final = (
    "load it with AutoTokenizer, save it again and check that the rows of the model are those of its tokens; or leave "
    "out the tokenizer section where all models share the file"
)
# Flags of a token that a rule adds and that no model has.
_SPECIAL: Final = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


class Rule(NamedTuple):
    """Where the row of a token comes from, by the recipe.

    Attributes:
        source: what the recipe calls the model, and the row there; None for zeros.
        force: also for models that have the token.
    """

    source: tuple[str, int] | None
    force: bool


class Joined(NamedTuple):
    """The vocabulary of the output.

    Attributes:
        tokens: token of each id, None where an id has none.
        leader: directory of the model whose tokenizer the output gets; its rows without a token stay.
        own: for each model, by directory, the row of each id of the output, -1 where it lacks the token.
        taken: for each model the ids that have a token there, so that their rows are no padding.
        base: what the recipe calls the base, whose rows stand in where a model lacks a token; None without one.
        new: tokens that the leader's tokenizer lacks.
        members: what the recipe calls the models that are merged; others only give rows that a rule names.
        rules: by id, what the recipe says of single tokens.
        multiple: the number of rows is a multiple of this; None keeps the leader's rows.
        height: the leader's rows where it is no model of the recipe, as far as its config.json states them.
        by_number: models whose rows are paired by number, each with the reason.
        warnings: what may well surprise.
        problems: why the vocabularies cannot be joined.
    """

    tokens: Sequence[str | None]
    leader: Path
    own: Mapping[Path, Ids]
    taken: Mapping[Path, frozenset[int]]
    base: str | None
    members: frozenset[str]
    new: tuple[NewToken, ...] = ()
    rules: Mapping[int, Rule] = {}
    multiple: int | None = None
    height: int | None = None
    by_number: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def rows(self, leaders: int) -> int:
        """Return how many rows the output has, where the leader has so many, or the donor if no model leads."""
        leaders = leaders if self.height is None else self.height
        if self.multiple is not None:
            return -(-len(self.tokens) // self.multiple) * self.multiple
        return max(leaders, len(self.tokens))

    def rows_of(self, model: Path, rows: int, size: int) -> Ids:
        """Return the row of a model for each row of the output, -1 where it has none.

        Args:
            model: its directory.
            rows: how many rows the tensor has there.
            size: how many the output has.
        """
        import numpy as np

        own, taken = self.own[model], self.taken[model]
        padding = [row if row < rows and row not in taken else -1 for row in range(len(own), size)]
        return np.concatenate([np.where(own < rows, own, -1), np.array(padding, dtype=np.int64)])


def join_models(
    config: MergeConfig,
    checkpoints: Mapping[ModelReference, Checkpoint],
    vocabularies: Mapping[Path, Vocabulary],
    leader: Path,
) -> Joined:
    """Join the vocabularies of the models of a recipe.

    Ids without a token (padding, and the tokens of a format that is not read where the files are equal) are paired by
    number.

    Args:
        config: the recipe.
        checkpoints: its models.
        vocabularies: of all models and of `leader`, by directory.
        leader: directory whose tokenizer the output gets.

    Raises:
        CheckpointError: a tokenizer file is not what its name says.
        OSError: one cannot be read.
    """
    return _Joiner(config, checkpoints, vocabularies, leader).join()


class _Joiner:
    def __init__(
        self,
        config: MergeConfig,
        checkpoints: Mapping[ModelReference, Checkpoint],
        vocabularies: Mapping[Path, Vocabulary],
        leader: Path,
    ) -> None:
        self._config = config
        self._checkpoints = checkpoints
        self._vocabularies = vocabularies
        self._leader = leader
        self._first = vocabularies[leader]
        self._names: dict[Path, str] = {}
        for reference in config.model_references():
            self._names.setdefault(checkpoints[reference].directory, str(reference))
        self._names.setdefault(leader, str(config.tokenizer_source))
        self._union = config.tokenizer_source == "union"
        self._problems: list[str] = []
        self._by_number: list[str] = []
        self._warnings: list[str] = []

    def join(self) -> Joined:
        import numpy as np

        config = self._config
        self._problems += [
            f"{name}: {wrong}; {_RENUMBER}"
            for model, name in self._names.items()
            if (wrong := self._vocabularies[model].misstated)
        ]
        ids = {model: self._ids_of(model) for model in self._names}
        tokens, seconds = _by_id(ids[self._leader] or {})
        new = self._new_tokens(ids, len(tokens))
        tokens = np.append(tokens, np.array([token.content for token in new], dtype=object))
        own, taken = {}, {}
        for model, known in ids.items():
            taken[model] = frozenset(() if known is None else known.values())
            own[model] = np.arange(len(tokens)) if known is None else _pair(tokens, seconds, known, taken[model])
        return Joined(
            tokens.tolist(),
            self._leader,
            own,
            taken,
            None if config.base_model is None else str(config.base_model),
            frozenset(map(str, config.merged_models())),
            new,
            self._rules({**(ids[self._leader] or {}), **{token.content: token.number for token in new}}, ids),
            None if config.tokenizer is None else config.tokenizer.pad_to_multiple_of,
            self._height(),
            by_number=tuple(self._by_number),
            warnings=tuple(self._warnings),
            problems=tuple(self._problems),
        )

    def _ids_of(self, model: Path) -> Mapping[str, int] | None:
        """Return the ids of a model; None where they are paired by number, since they cannot be read."""
        vocabulary, first, name = self._vocabularies[model], self._first, self._names[model]
        who = self._names[self._leader]
        if vocabulary.complete and first.complete:
            kinds = vocabulary.content.kind, first.content.kind
            if None not in kinds and kinds[0] != kinds[1]:
                self._problems.append(
                    f"{name}: its tokens are of another kind ({kinds[0]}; {kinds[1]} in {who}), so equal "
                    "texts are other tokens; leave one of the models out"
                )
            elif vocabulary.ids.keys().isdisjoint(first.ids):
                self._warnings.append(f"{name} shares no token with {who}: its embedding has no effect")
            return vocabulary.ids
        if vocabulary.same_file(first):
            # What the file holds is the same in both, read or not.
            return vocabulary.ids if not first.complete else {**first.ids, **vocabulary.ids}
        lacking = vocabulary if not vocabulary.complete else first
        what = "no tokenizer" if lacking.unread is None else f"{lacking.unread.name}, whose format is not read here"
        line = f"{name if lacking is vocabulary else who} has {what}"
        if self._union:
            self._problems.append(f"{line}; {_SAVE_FAST}")
        elif model != self._leader:
            self._by_number.append(f"{line}, so rows of {name} and {who} are not paired by token")
        return None if model != self._leader else vocabulary.ids

    def _new_tokens(self, ids: Mapping[Path, Mapping[str, int] | None], number: int) -> tuple[NewToken, ...]:
        """Return the tokens that the leader lacks, by model and id, numbered from the end of its tokens.

        A union has those of every model that is merged; the tokens of rules come last.
        """
        known = set(ids[self._leader] or ())
        found: list[NewToken] = []
        merged = (self._checkpoints[model].directory for model in self._config.merged_models())
        for model in dict.fromkeys(merged) if self._union else ():
            if model == self._leader:
                continue
            vocabulary, theirs = self._vocabularies[model], ids[model] or {}
            of_added, scores = vocabulary.flags, vocabulary.content.scores or ()
            lacking = sorted(filterfalse(known.__contains__, theirs), key=theirs.__getitem__)
            found += [
                NewToken(token, at, of_added.get(token), scores[theirs[token]] if theirs[token] < len(scores) else None)
                for at, token in enumerate(lacking, number + len(found))
            ]
            known.update(lacking)
        for rule in self._of_recipe():
            if rule.token not in known:
                known_flags = (vocabulary.flags.get(rule.token) for vocabulary in self._vocabularies.values())
                flags = next((found for found in known_flags if found is not None), _SPECIAL)
                found.append(NewToken(rule.token, number + len(found), flags, None))
                known.add(rule.token)
        self._warn_of_used(found)
        main = self._first.main
        if found and (main is None or main.name != TOKENIZER):
            what = "no tokenizer" if main is None else f"{main.name} and no {TOKENIZER}"
            self._problems.append(f"{self._names[self._leader]} has {what}; {_SAVE_FAST}")
        return tuple(found)

    def _warn_of_used(self, new: Sequence[NewToken]) -> None:
        """Warn of tokens that a BPE model uses although no merge makes them: whole words, and characters."""
        content = self._first.content
        characters = content.kind == "SentencePiece" and content.scores is None
        used = [
            token.content
            for token in new
            if token.flags is None and (content.whole or (characters and len(token.content) == 1))
        ]
        if used:
            what = "words that are tokens whole (`ignore_merges`)" if content.whole else "single characters"
            self._warnings.append(
                f"the tokenizer of {self._names[self._leader]} takes {what}, so texts with some of {len(used)} tokens "
                f"that are new to it, e.g. {used[0]!r}, are no longer split as before"
            )

    def _height(self) -> int | None:
        """Return the rows that a tokenizer's model states, where its weights are not read."""
        read = (self._checkpoints[reference] for reference in self._config.model_references())
        if any(checkpoint.directory == self._leader for checkpoint in read):
            return None
        config = read_object(self._leader / CONFIG) if (self._leader / CONFIG).exists() else {}
        return stated_vocab_size(config) or 0

    def _of_recipe(self) -> tuple[TokenRule, ...]:
        return () if self._config.tokenizer is None else self._config.tokenizer.tokens

    def _rules(self, numbers: Mapping[str, int], ids: Mapping[Path, Mapping[str, int] | None]) -> dict[int, Rule]:
        """Find the rows that the recipe names."""
        found = {}
        for rule in self._of_recipe():
            if rule.keeps:
                continue
            if rule.model is None:
                found[numbers[rule.token]] = Rule(None, rule.force)
                continue
            row: object = rule.token if rule.of is None else rule.of
            if isinstance(row, str):
                known = ids[self._checkpoints[rule.model].directory] or {}
                if row not in known:
                    near = suggestion(row, [token for token in known if token[:1] == row[:1]])
                    self._problems.append(f"`tokens`: {rule.model} has no token {row!r}{near}")
                    continue
                row = known[row]
            assert isinstance(row, int)  # the recipe's is one
            found[numbers[rule.token]] = Rule((str(rule.model), row), rule.force)
        return found


def _by_id(ids: Mapping[str, int]) -> tuple[Tokens, dict[int, list[str]]]:
    """Return the token of each id, and further names of an id that has several; the last is the one that is used."""
    import numpy as np

    names: Tokens = np.empty(len(ids), dtype=object)
    names[:] = list(ids)
    tokens: Tokens = np.full(max(ids.values(), default=-1) + 1, None, dtype=object)
    tokens[np.fromiter(ids.values(), dtype=np.int64, count=len(ids))] = names
    seconds: dict[int, list[str]] = {}
    if len(ids) > np.count_nonzero(tokens != None):  # noqa: E711 - of each element
        for token, number in ids.items():
            if tokens[number] != token:
                seconds.setdefault(number, []).append(token)
    return tokens, seconds


def _pair(tokens: Tokens, seconds: Mapping[int, list[str]], ids: Mapping[str, int], taken: frozenset[int]) -> Ids:
    """Return the id of each token in another vocabulary, -1 where it lacks it."""
    import numpy as np

    theirs, _ = _by_id(ids)
    found = np.full(len(tokens), -1)
    # Most tokens have the same id in both, or none, which is much faster to see than to look up.
    least = min(len(tokens), len(theirs))
    same = np.flatnonzero(tokens[:least] == theirs[:least])
    found[same] = same
    others = np.flatnonzero(found < 0)
    known: Mapping[Any, int] = ids
    found[others] = np.fromiter(map(known.get, tokens[others], repeat(-1)), dtype=np.int64, count=len(others))
    for number, names in seconds.items():
        if found[number] < 0:
            found[number] = next((ids[name] for name in names if name in ids), -1)
    for number in others.tolist():
        if tokens[number] is None and number not in taken:
            found[number] = number
    return found
