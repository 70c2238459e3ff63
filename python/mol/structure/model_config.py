"""The config.json of the output, made to agree with its tensors."""

from __future__ import annotations

import copy
import itertools
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.dtypes import DTYPE_NAMES
from mol.structure.layers import Structure, is_layer_count_key, tail_counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_DTYPE_KEYS: Final = ("dtype", "torch_dtype")
_TIE_KEY: Final = "tie_word_embeddings"
_INDEX_LIST: Final = re.compile(r"(?:^|_)(?:layers?|blocks?|idxs)(?:_|$)")

# Lists that have nothing to do with layers, however long they are, and sections that hold factors of frequencies.
_OTHER_LIST: Final = re.compile(r"token_ids?$|^architectures$|^(?:vision|image|audio|video)_")
_OTHER_SECTION: Final = re.compile(r"rope_(?:scaling|parameters)")

TEXT_SECTIONS: Final = ("text_config", "language_config", "llm_config", "thinker_config", "text_model_config")
"""Sections of config.json that describe the language model among several towers."""

# Keys that make every n-th layer another kind: sliding_window_pattern, full_attention_interval, attn_layer_period.
_CYCLE: Final = re.compile(r"_pattern$|_interval$|_period$|_every_n_layers$|(?:sparse|layer)_step$")


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
        section["vocab_size"] = size


def text_sections(config: dict[str, Any] | Mapping[str, Any]) -> Iterator[Any]:
    """Yield config.json and the sections in it that describe the language model, outermost first."""
    yield config
    for key in TEXT_SECTIONS:
        if isinstance(config.get(key), dict):
            yield from text_sections(config[key])


def restack(
    config: dict[str, Any], structure: Structure, origins: Sequence[LayerOrigin]
) -> tuple[list[str], list[str]]:
    """Make config.json describe other layers than the donor's: their number, and every list with one entry per layer.

    A list belongs to the layers when it has as many entries as the donor has layers, also where it is written as
    runs (`attention_types`) or as a text with a sign for each layer (`hybrid_override_pattern`). A list of layer
    numbers, such as `mlp_only_layers`, is renumbered. Ids of tokens, factors of frequencies and sections of side
    towers (`vision_config`) are left alone.

    Args:
        config: the donor's config.json, changed in place.
        structure: the donor's.
        origins: for each output layer where it comes from.

    Returns:
        Notes on what was changed, and problems.
    """
    assert structure.main is not None  # the planner refuses slices without one
    depth = len(structure.main)
    notes: list[str] = []
    counted = False
    tails = tail_counts(config)
    for path, mapping in _sections(config, structure):
        for key, whole in list(mapping.items()):
            value, rest = _cut(key, whole, depth, tails)
            where = ".".join((*path, key))
            if type(value) is int and value == depth and is_layer_count_key(key):
                mapping[key] = len(origins)
                counted = True
            elif (entries := _per_layer(key, value, depth)) is not None:
                entries = [_entry(origin, path, key, entries, tails) for origin in origins]
                mapping[key] = (
                    [*_written_as(value, depth, entries), *rest] if rest else _written_as(value, depth, entries)
                )
                notes.append(f"config.json: `{where}` has one entry per layer, so its entries moved with the layers")
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


def broken_cycles(config: dict[str, Any], structure: Structure, origins: Sequence[LayerOrigin]) -> list[str]:
    """Report keys that make every n-th layer another kind, where layers now stand at positions of another kind."""
    return [
        f"config.json: `{key}: {value}` makes the kind of a layer depend on its number, and layers of the output have "
        f"numbers of another kind than where they come from; choose ranges that move layers by a multiple of {value}"
        for _, mapping in _sections(config, structure)
        for key, value in mapping.items()
        if type(value) is int
        and value > 1
        and _CYCLE.search(key)
        and any((i - origin.layer) % value for i, origin in enumerate(origins))
    ]


def _mappings(config: dict[str, Any] | Mapping[str, Any]) -> Iterator[Any]:
    """Yield config.json and every object in it, outermost first."""
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _mappings(value)


def _sections(
    config: dict[str, Any], structure: Structure, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the objects of config.json that may speak of the main stack, with their paths."""
    yield path, config
    assert structure.main is not None
    for key, value in config.items():
        if not isinstance(value, dict) or _OTHER_SECTION.fullmatch(key):
            continue
        tower = key.removesuffix("_config")
        elsewhere = any(tower in stack.prefix for stack in structure.stacks if stack is not structure.main)
        if not elsewhere or tower in structure.main.prefix:
            yield from _sections(value, structure, (*path, key))


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
    own = _per_layer(key, _cut(key, _lookup(origin.config, path).get(key), origin.depth, tails)[0], origin.depth)
    source = donors if own is None else own
    return copy.deepcopy(source[min(origin.layer, len(source) - 1)])


def _indices(origin: LayerOrigin, path: tuple[str, ...], key: str, donors: list[Any]) -> list[Any]:
    own = _lookup(origin.config, path).get(key)
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


def _lookup(config: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for key in path:
        inner = config.get(key)
        if not isinstance(inner, dict):
            return {}
        config = inner
    return config
