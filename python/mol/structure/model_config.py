"""The config.json of the output, made to agree with its tensors."""

from __future__ import annotations

import copy
import itertools
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.dtypes import DTYPE_NAMES
from mol.regex import regex
from mol.structure.layers import Stack, Structure, is_layer_count_key, is_side_tower, tail_counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_DTYPE_KEYS: Final = ("dtype", "torch_dtype")
_TIE_KEY: Final = "tie_word_embeddings"
_DECODERS: Final = "decoder_vocab_size"
_KINDS: Final = ("_type", "_types", "_pattern")
_INDEX_LIST: Final = regex(r"(?:^|_)(?:layers?|blocks?|idxs)(?:_|$)")

# Lists that have nothing to do with layers, however long they are, and sections that hold factors of frequencies.
_OTHER_LIST: Final = regex(r"token_ids?$|tokens$|^architectures$|^(?:vision|image|audio|video)_")
_OTHER_SECTION: Final = regex(r"rope_(?:scaling|parameters)")

TEXT_SECTIONS: Final = ("text_config", "language_config", "llm_config", "thinker_config", "text_model_config")
"""Sections of config.json that describe the language model among several towers."""

# Sections of side towers, with words in the paths of their tensors.
_SIDE_SECTIONS: Final = (("vision", "visual", "vit", "image"), ("audio", "speech", "sound"))


class LayerOrigin(NamedTuple):
    """Where a layer of the output comes from.

    Attributes:
        config: config.json of the model that it is taken from first.
        layer: its number there.
        depth: how many layers that model has.
    """

    config: Mapping[str, Any]
    layer: int
    depth: int


def tie_flag(config: Mapping[str, Any]) -> bool | None:
    """Read whether a model says that its head is its embedding; None where it says nothing."""
    for mapping in _mappings(config):
        if isinstance(mapping.get(_TIE_KEY), bool):
            return bool(mapping[_TIE_KEY])
    return None


def set_tie(config: dict[str, Any], *, tied: bool) -> None:
    """State whether the head is the embedding, at the top and wherever else it is stated."""
    for mapping in _mappings(config):
        if _TIE_KEY in mapping:
            mapping[_TIE_KEY] = tied
    config[_TIE_KEY] = tied


def set_dtype(config: dict[str, Any], dtype: str) -> None:
    """State the dtype of the tensors, at the top and wherever else one is stated.

    Args:
        config: changed in place.
        dtype: safetensors name.
    """
    word = DTYPE_NAMES[dtype]
    for mapping in _mappings(config):
        for key in _DTYPE_KEYS:
            if isinstance(mapping.get(key), str):
                mapping[key] = word
    if not any(key in config for key in _DTYPE_KEYS):
        config["torch_dtype"] = word  # the key that old and new versions of transformers read
    for key in _DTYPE_KEYS:
        if key in config:
            config[key] = word


def stated_vocab_size(config: Mapping[str, Any]) -> int | None:
    """Return the size of the vocabulary that config.json states, None where it states none."""
    stated = (part.get("vocab_size") for part in text_sections(config))
    return next((size for size in stated if type(size) is int), None)


def set_vocab_size(config: dict[str, Any], size: int) -> None:
    """State the rows of the embedding, at the top and in the sections of the language model that state them."""
    stated = [section for section in text_sections(config) if type(section.get("vocab_size")) is int]
    for section in stated or [config]:
        if section.get(_DECODERS, object()) == section.get("vocab_size"):
            section[_DECODERS] = size
        section["vocab_size"] = size


def second_vocabulary(config: Mapping[str, Any]) -> str | None:
    """Return what config.json states of a decoder's vocabulary that is not the encoder's; None where it is."""
    size = config.get(_DECODERS)
    return f"{_DECODERS}: {size}" if size not in (None, config.get("vocab_size")) else None


def text_sections(config: dict[str, Any] | Mapping[str, Any]) -> Iterator[Any]:
    """Yield config.json and the sections in it that describe the language model, outermost first."""
    yield config
    for key in TEXT_SECTIONS:
        if isinstance(config.get(key), dict):
            yield from text_sections(config[key])


def restack(
    config: dict[str, Any], structure: Structure, stack: Stack, origins: Sequence[LayerOrigin]
) -> tuple[list[str], list[str]]:
    """Make config.json describe other layers than the donor's: their number, and every list with one entry per layer.

    A list belongs to the layers when it has as many entries as the donor has layers, also where it is written as
    runs (`attention_types`) or as a text with a sign for each layer (`hybrid_override_pattern`). A list of layer
    numbers, such as `mlp_only_layers`, is renumbered. Ids of tokens, factors of frequencies and sections of side
    towers (`vision_config`) are left alone.

    Args:
        config: the donor's config.json, changed in place.
        structure: the donor's.
        stack: its layers, which others replace.
        origins: for each output layer where it comes from.

    Returns:
        Notes on what was changed, and problems.
    """
    depth = len(stack)
    notes: list[str] = []
    counted = False
    tails = tail_counts(config)
    _state_sides(config, stack)
    for path, mapping in sections(config, structure, stack):
        for key, whole in list(mapping.items()):
            if _is_of_other_side(key, stack, mapping):
                continue
            value, rest = _cut(key, whole, depth, tails)
            where = ".".join((*path, key))
            if type(value) is int and value == depth and is_layer_count_key(key):
                mapping[key] = len(origins)
                counted = True
            elif not _lists_all(key, value, depth) and (entries := _per_layer(key, value, depth)) is not None:
                entries = [_entry(origin, path, key, entries, tails) for origin in origins]
                mapping[key] = (
                    [*_written_as(value, depth, entries), *rest] if rest else _written_as(value, depth, entries)
                )
                notes.append(f"config.json: `{where}` has one entry per layer, so its entries moved with the layers")
                # A Nemotron-H of transformers 5 states no number next to the list of its kinds.
                counted |= key.endswith(_KINDS) and not any(
                    type(other) is int and is_layer_count_key(name) for name, other in mapping.items()
                )
            elif isinstance(value, dict) and _is_numbered(key, value, depth):
                found = ((i, _numbered(origin, path, key, value)) for i, origin in enumerate(origins))
                mapping[key] = {str(i): copy.deepcopy(entry) for i, entry in found if entry is not None}
                notes.append(f"config.json: the layer numbers of `{where}` moved with the layers")
            elif isinstance(value, list) and _is_index_list(key, value, depth):
                mapping[key] = [
                    i for i, origin in enumerate(origins) if origin.layer in _indices(origin, path, key, value)
                ]
                notes.append(f"config.json: the layer numbers of `{where}` moved with the layers")
    if counted or depth == len(origins):
        return notes, []
    return notes, [
        f"config.json of the donor counts no layers as {depth}, which is how many its tensors have, "
        f"so the {len(origins)} layers of the output cannot be stated in it; correct its layer count first"
    ]


def _mappings(config: dict[str, Any] | Mapping[str, Any]) -> Iterator[Any]:
    """Yield config.json and every object in it, outermost first."""
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _mappings(value)


def sections(
    config: dict[str, Any], structure: Structure, stack: Stack, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the objects of config.json that may speak of a stack, with their paths."""
    beside = structure.main is not None and stack is not structure.main and is_side_tower(stack.prefix)
    side = "" if path else _side(stack.prefix)
    apart = bool(side) and any(isinstance(value, dict) and _side(key) == side for key, value in config.items())
    if path or not (beside or apart):
        yield path, config
    for key, value in config.items():
        if not isinstance(value, dict) or _OTHER_SECTION.fullmatch(key):
            continue
        tower = key.removesuffix("_config")
        if apart and _side(key) != side:
            continue
        if beside and not path and not _is_of_tower(tower, stack.prefix):
            continue
        elsewhere = any(_is_of_tower(tower, other.prefix) for other in structure.stacks if other is not stack)
        if not elsewhere or _is_of_tower(tower, stack.prefix):
            yield from sections(value, structure, stack, (*path, key))


def _is_of_tower(tower: str, prefix: str) -> bool:
    """Return whether a section describes the tower at a path: `vision_config` describes `visual.blocks`."""
    parts = re.split(r"[._]", prefix)
    return tower in prefix or any(tower in words and not set(words).isdisjoint(parts) for words in _SIDE_SECTIONS)


def _state_sides(config: dict[str, Any], stack: Stack) -> None:
    """State the depth of a T5's decoder, which is the encoder's where nothing is stated."""
    if _side(stack.prefix) and type(config.get("num_layers")) is int and config.get("num_decoder_layers") is None:
        config["num_decoder_layers"] = config["num_layers"]


def _side(text: str) -> str:
    words = re.split(r"[._]", text)
    return next((side for side in ("decoder", "encoder") if side in words), "")


def _is_of_other_side(key: str, stack: Stack, mapping: Mapping[str, Any]) -> bool:
    """Return whether a key speaks of the other side of an encoder and a decoder than a stack is of."""
    mine, theirs = _side(stack.prefix), _side(key)
    if not mine or theirs == mine:
        return False
    # What names no side counts the encoder's layers where the decoder's are counted apart.
    return bool(theirs) or (mine == "decoder" and any(is_layer_count_key(k) and _side(k) == mine for k in mapping))


def _per_layer(key: str, value: object, depth: int) -> Sequence[Any] | None:
    """Return one entry for each of `depth` layers, or None where the value is something else."""
    if isinstance(value, str):
        return value if len(value) == depth and key.endswith("_pattern") else None
    if not isinstance(value, list) or _OTHER_LIST.search(key):
        return None
    if _are_runs(value, depth):
        return [entry for entries, times in value for _ in range(times) for entry in entries]
    return value if len(value) == depth else None


def _are_runs(value: list[Any], depth: int) -> bool:
    """Return whether a value lists [entries, times], as in [[["global", "local"], 12]], `depth` entries in all."""
    return (
        all(
            isinstance(run, list) and len(run) == 2 and isinstance(run[0], list) and type(run[1]) is int
            for run in value
        )
        and sum(len(entries) * times for entries, times in value) == depth
    )


def _written_as(old: object, depth: int, entries: list[Any]) -> Any:  # noqa: ANN401
    """Write entries, one per layer, in the form that config.json has."""
    if isinstance(old, str):
        return "".join(entries)
    return [[entries, 1]] if isinstance(old, list) and _are_runs(old, depth) else entries


def _cut(key: str, value: Any, depth: int, tails: set[int]) -> tuple[Any, list[Any]]:  # noqa: ANN401
    """Cut what a list has beyond the layers, where it continues with the modules that predict further tokens."""
    if isinstance(value, list) and len(value) - depth in tails and not _OTHER_LIST.search(key):
        return value[:depth], value[depth:]
    return value, []


def _entry(origin: LayerOrigin, path: tuple[str, ...], key: str, donors: Sequence[Any], tails: set[int]) -> Any:  # noqa: ANN401
    """Return the entry of a per-layer list that belongs to a layer, from the layer's own model if it has the list."""
    own = _per_layer(key, _cut(key, lookup(origin.config, path).get(key), origin.depth, tails)[0], origin.depth)
    source = donors if own is None else own
    return copy.deepcopy(source[min(origin.layer, len(source) - 1)])


def _indices(origin: LayerOrigin, path: tuple[str, ...], key: str, donors: list[Any]) -> list[Any]:
    own = lookup(origin.config, path).get(key)
    return own if isinstance(own, list) else donors


def _is_index_list(key: str, value: list[Any], depth: int) -> bool:
    """Return whether a value lists layer numbers: its key names layers, its entries rise and stay below the depth."""
    return (
        bool(value)
        and _INDEX_LIST.search(key) is not None
        and _OTHER_LIST.search(key) is None
        and all(type(entry) is int and 0 <= entry < depth for entry in value)
        and all(a < b for a, b in itertools.pairwise(value))
    )


def _is_numbered(key: str, value: Mapping[str, Any], depth: int) -> bool:
    """Return whether a value has numbers of layers as keys, such as `per_layer_config` of transformers 5."""
    return (
        bool(value)
        and _INDEX_LIST.search(key) is not None
        and all(number.isdecimal() and int(number) < depth for number in value)
    )


def _numbered(origin: LayerOrigin, path: tuple[str, ...], key: str, donors: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return what is stated of a layer by its number, None where nothing is."""
    own = lookup(origin.config, path).get(key)
    return (own if isinstance(own, dict) else donors).get(str(origin.layer))


def _lists_all(key: str, value: object, depth: int) -> bool:
    """Return whether a list of layer numbers names every layer, as `moe_layers` of some models does."""
    return isinstance(value, list) and key.endswith(("layers", "idxs")) and value == list(range(depth))


def lookup(config: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the object at a path of config.json; an empty one where there is none."""
    for key in path:
        inner = config.get(key)
        if not isinstance(inner, dict):
            return {}
        config = inner
    return config
