"""Makes the ids of special tokens in config.json and generation_config.json follow the tokenizer of the output."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.io.json_file import read_object
from mol.io.layout import CONFIG, GENERATION
from mol.io.vocabulary import SPECIAL_ROLES
from mol.regex import regex
from mol.structure.model_config import text_sections

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mol.io.checkpoint import Checkpoint
    from mol.io.vocabulary import Vocabulary
    from mol.merge.planned import PlannedMerge

# What generation itself needs; the other roles are stated only where the donor's config.json has them.
_ALWAYS: Final = frozenset({"bos", "eos", "pad"})
_EOS: Final = "eos_token_id"
# Further ids of the text's vocabulary; those of codecs have vocabularies of their own.
_FURTHER: Final = regex(
    r"^(decoder_start|forced_[be]os|image|video|audio|vision|vision_start|vision_end)_token_(id|index)$"
    r"|^(begin_)?suppress_tokens$|^(bad_words|forced_decoder)_ids$"
)


class SpecialTokens(NamedTuple):
    """What the output says about its special tokens.

    Attributes:
        config: the output's config.json.
        files: relative path -> content of other files that are not the donor's.
        notes: what was changed, one line each.
        warnings: what the user should know about, one line each.
    """

    config: dict[str, Any]
    files: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def follow_tokenizer(
    planned: PlannedMerge, tokenizer: Path, vocabularies: Mapping[Path, Vocabulary], *, copies_tokenizer: bool
) -> SpecialTokens:
    """Set the ids of the output's special tokens to those of its tokenizer, if the recipe chooses one.

    What the tokenizer's model states in its own config.json and generation_config.json counts, since a model may
    stop at more tokens than one, next to the token that the tokenizer itself names. Without a `tokenizer_source`
    nothing is changed. Unless it names a model, a warning says where inputs end their texts differently.

    Args:
        planned: the merge.
        tokenizer: directory whose tokenizer the output gets.
        vocabularies: of all models and of `tokenizer`, by directory.
        copies_tokenizer: whether the output gets a tokenizer at all.

    Raises:
        CheckpointError: a file of the tokenizer or one of the configs is damaged.
        OSError: one cannot be read.
    """
    donor, source = planned.donor, planned.config.tokenizer_source
    if source is None or not copies_tokenizer:
        return SpecialTokens(planned.model_config, {}, (), _differing_ends(planned, vocabularies))
    warnings = _differing_ends(planned, vocabularies) if source in ("base", "union") else ()
    own = tokenizer == donor.directory
    vocabulary = vocabularies[tokenizer]
    its_config = donor.config if own else _read(tokenizer / CONFIG) or {}
    its_generation, generation = _read(tokenizer / GENERATION), _read(donor.directory / GENERATION)
    end = vocabulary.special.get("eos")
    if own and (end is None or end in _stops(its_config, its_generation)):
        return SpecialTokens(planned.model_config, {}, (), warnings)

    wanted: dict[str, Any] = {}
    for role in SPECIAL_ROLES:
        key = f"{role}_token_id"
        stated = _find(its_config, key)
        # Without a generation config it is what the model stops at.
        stops = key == _EOS and _find(its_generation or {}, key) is None and _has(vocabulary, stated)
        value = _with(vocabulary.special.get(role), stated, keeps=stops)
        if value is not None and (role in _ALWAYS or _find(donor.config, key) is not None) and (not own or key == _EOS):
            wanted[key] = value
    states_none = not wanted and not own
    if wanted and not own:
        wanted |= _of_donor(donor.config, generation, wanted, vocabularies[donor.directory], vocabulary)
    config = copy.deepcopy(planned.model_config)
    changes = [f"config.json {line}" for key, value in wanted.items() if (line := _set(config, key, value))]

    files = {}
    generated = _generation(generation, its_generation, wanted, end, only_end=own)
    lost: dict[str, None] = {}
    if not own:
        before = vocabularies[donor.directory]
        for name, found, its in (
            (CONFIG, config, its_config),
            (GENERATION, generated, {**its_config, **(its_generation or {})}),
        ):
            changes += [f"{name} {line}" for line in _follow_further(found, its, before, vocabulary, lost)]
    # Without a file of its own a model generates by its config.json.
    if generated != (generation or {}) and (generation is not None or not _restates(generated, config)):
        old = generation or {}
        changes += [
            f"{GENERATION} `{key}` {_shown(old.get(key))} -> {_shown(value)}"
            for key, value in generated.items()
            if old.get(key) != value and not _FURTHER.search(key)
        ]
        files[GENERATION] = generated
    notes = (f"special tokens follow the tokenizer of {source}: {', '.join(changes)}",) if changes else ()
    if lost:
        warnings += (
            f"the tokenizer of {source} lacks tokens that {donor.name} states by their ids, which are left out: "
            f"{', '.join(lost)}",
        )
    if states_none:
        warnings += (
            f"no file of {source} states the ids of its special tokens, so config.json and {GENERATION} keep those of "
            f"{donor.name}: check that the output stops generating",
        )
    return SpecialTokens(config, files, notes, warnings)


def _generation(
    donors: Mapping[str, Any] | None,
    its: Mapping[str, Any] | None,
    wanted: Mapping[str, Any],
    end: int | None,
    *,
    only_end: bool,
) -> dict[str, Any]:
    """Return the output's generation config: the donor's, with the ids of the tokenizer's model."""
    generated = dict(donors or {})
    for key in (_EOS,) if only_end else sorted(f"{role}_token_id" for role in _ALWAYS):
        value = (its or {}).get(key)
        if key == _EOS and value is not None:
            value = value if end is None or end in _as_list(value) else [end, *_as_list(value)]
        elif value is None and not (donors is None and its is None):
            value = wanted.get(key) if key == _EOS or generated.get(key) is not None else None
        if value is not None or (key in wanted and generated.get(key) is not None):
            generated[key] = value
    return generated


def _of_donor(
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None,
    wanted: Mapping[str, Any],
    before: Vocabulary,
    after: Vocabulary,
) -> dict[str, Any]:
    """Return the new ids of special tokens that the donor alone states; None where the tokenizer has no such token."""
    found: dict[str, Any] = {}
    for key in (f"{role}_token_id" for role in SPECIAL_ROLES):
        stated = [value for value in (_find(config, key), (generation or {}).get(key)) if value is not None]
        if key not in wanted and stated:
            tokens = map(before.tokens.get, _as_list(stated[0]))
            ids = [after.ids[token] for token in tokens if token in after.ids]
            found[key] = (ids if isinstance(stated[0], list) else ids[0]) if ids else None
    return found


def _follow_further(
    config: dict[str, Any],
    its: Mapping[str, Any],
    before: Vocabulary,
    after: Vocabulary,
    lost: dict[str, None],
) -> list[str]:
    """Have ids that are no role of a tokenizer follow it: as its model states them, else by the text of the token.

    Args:
        config: config.json or generation_config.json of the output; changed in place.
        its: what the tokenizer's model states there.
        before: the donor's tokenizer.
        after: the tokenizer of the output.
        lost: gets what the tokenizer lacks: a key, with an id and its token.

    Returns:
        What was changed, one line for each key.
    """
    changes = []

    def moved(key: str, old: int) -> int | None:
        token = before.tokens.get(old)
        if token is not None and token not in after.ids:
            lost.setdefault(f"`{key}` {old} ({token!r})")
        return old if token is None else after.ids.get(token)

    def moved_entry(key: str, entry: list[Any]) -> list[Any] | None:
        start = 1 if key == "forced_decoder_ids" else 0  # a position and an id; None leaves the id open
        found = [moved(key, number) if type(number) is int else number for number in entry[start:]]
        lacking = any(new is None and number is not None for new, number in zip(found, entry[start:], strict=True))
        return None if lacking else [*entry[:start], *found]

    # What is not read cannot be followed.
    parts = text_sections(config) if before.ids and after.complete else ()
    for part in parts:
        for key in filter(_FURTHER.search, part):
            old, stated = part[key], _find(its, key)
            value = old
            if key.endswith("_ids") and isinstance(old, list):
                words = (moved_entry(key, entry) for entry in old if isinstance(entry, list))
                value = [word for word in words if word is not None] or None  # generate() refuses an empty list
            elif isinstance(old, list):
                value = [new for number in _as_list(old) if (new := moved(key, number)) is not None]
            elif type(old) is int:
                value = stated if type(stated) is int and _has(after, stated) else moved(key, old)
            if value != old:
                part[key] = value
                changes.append(f"`{key}` {_shown(old)} -> {_shown(value)}")
    return changes


def _differing_ends(planned: PlannedMerge, vocabularies: Mapping[Path, Vocabulary]) -> tuple[str, ...]:
    """Warn where the inputs do not end their texts with the same tokens."""
    chosen = planned.config.tokenizer_source
    # Rows are paired by token where the recipe chooses a tokenizer, else by number.
    donors = None if chosen is None else vocabularies[planned.donor.directory]
    ends = {source.name: _ends_of(source, vocabularies[source.directory], donors) for source in planned.sources}
    known = {name: ids for name, ids in ends.items() if ids}
    if len({frozenset(ids) for ids in known.values()}) < 2:
        return ()
    listed = ", ".join(f"{name} {' or '.join(ids.values())}" for name, ids in known.items())
    other = next(name for name, ids in known.items() if ids.keys() != known.get(planned.donor.name, {}).keys())
    way_out = f"`tokenizer_source: {other}` takes tokenizer and ids of {other}"
    if chosen == "union":
        way_out = f"`eos_token_id` in {GENERATION} may list ids of several tokens"
    return (
        f"the inputs end their texts with different tokens: {listed}; the output has the ids of {planned.donor.name}, "
        f"so it may not stop where another would ({way_out})",
    )


def _ends_of(source: Checkpoint, vocabulary: Vocabulary, donors: Vocabulary | None) -> dict[object, str]:
    """Return what a model stops at, each id with its token where that is known: by id, by token with `donors`."""
    stops = set(_stops(source.config, _read(source.directory / GENERATION)))
    stops |= {vocabulary.special["eos"]} if "eos" in vocabulary.special else set()
    named = vocabulary if donors is None or vocabulary.complete else donors
    tokens = {number: token for token, number in named.ids.items() if number in stops}
    return {
        number if donors is None else tokens.get(number, number): (
            f"{number} ({tokens[number]})" if number in tokens else str(number)
        )
        for number in sorted(stops)
    }


def _stops(config: Mapping[str, Any], generation: Mapping[str, Any] | None) -> list[int]:
    """Return the ids at which a model stops: those of its generation config, else those of its config."""
    stated = (generation or {}).get(_EOS)
    return _as_list(_find(config, _EOS) if stated is None else stated)


def _as_list(value: object) -> list[int]:
    return [number for number in (value if isinstance(value, list) else [value]) if type(number) is int]


def _with(token: int | None, stated: object, *, keeps: bool) -> object:
    """Return what a model states, if the token is among it, else the token, with what is stated next to it."""
    if token is None or token in _as_list(stated):
        return stated
    return [token, *_as_list(stated)] if keeps or isinstance(stated, list) else token


def _has(vocabulary: Vocabulary, stated: object) -> bool:
    """Return whether an id may be one of a vocabulary: of one that is not read any may."""
    return type(stated) is int and (not vocabulary.complete or stated in vocabulary.ids.values())


def _find(config: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 - a number or a list of numbers
    return next((part[key] for part in text_sections(config) if part.get(key) is not None), None)


def _set(config: dict[str, Any], key: str, value: object) -> str | None:
    """State an id wherever it is stated already, at the top if nowhere; return what was changed."""
    old = _find(config, key)
    if old == value:
        return None
    parts = [part for part in text_sections(config) if key in part] or [config]
    for part in parts:
        part[key] = copy.deepcopy(value)
    return f"`{key}` {_shown(old)} -> {_shown(value)}"


def _shown(value: object) -> str:
    return "unset" if value is None else str(value)


def _restates(generated: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return all(_find(config, key) == value for key, value in generated.items())


def _read(path: Path) -> dict[str, Any] | None:
    return read_object(path) if path.exists() else None
