"""Settings of config.json that make the kind of a layer depend on its number, when layers move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.regex import regex
from mol.structure.model_config import LayerOrigin, lookup, sections

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mol.structure.layers import Stack, Structure

# Layers from this number on are of another kind than those before.
_FROM: Final = frozenset({
    "max_window_layers", "first_k_dense_replace", "n_dense_layers", "num_dense_layers", "n_dense_first_layers",
    "moe_layer_start_index", "first_moe_layer", "num_hash_layers",
})  # fmt: skip
# Layers behind this number are of another kind; -1 is the last layer's.
_UP_TO: Final = frozenset({"moe_layer_end_index"})
# So many layers at the end are of another kind.
_LAST: Final = frozenset({"num_kv_shared_layers"})
# Every n-th layer is of another kind; periods of frequencies and of updates (a Nemotron's cache of speakers) are none.
_CYCLE: Final = regex(
    r"_pattern$|_interval$|(?<!max)(?<!min)(?<!update)_period$|_every_n_layers$|(?:sparse|layer)_step$|^moe_layer_freq$"
)
# Counts the layers of each stage of a Swin, a SegFormer or the like.
_STAGES: Final = "depths"
# Lists of kinds that are read over and over until each layer has one.
_REPEATED: Final = frozenset({"block_types"})
# What some classes do where config.json states nothing.
_UNSTATED: Final[Mapping[str, tuple[str, int]]] = {
    "gemma2": ("sliding_window_pattern", 2),
    "gemma3_text": ("sliding_window_pattern", 6),
    "cohere2": ("sliding_window_pattern", 4),
    "qwen3_next": ("full_attention_interval", 4),
}


class _Listed(NamedTuple):
    """How the kinds that a cycle makes are written as a list.

    Attributes:
        key: the key of the list.
        write: returns it for the kinds of all layers: true where the number, counted from 1, divides by the cycle.
    """

    key: str
    write: Callable[[Sequence[bool]], list[Any]]


def _named(every: str, others: str) -> _Listed:
    return _Listed("layer_types", lambda kinds: [every if kind else others for kind in kinds])


_LISTS: Final[Mapping[str, _Listed]] = {
    "sliding_window_pattern": _named("full_attention", "sliding_attention"),
    "full_attention_interval": _named("full_attention", "linear_attention"),
    "interleave_moe_layer_step": _Listed("moe_layers", lambda kinds: [i for i, kind in enumerate(kinds) if kind]),
    "no_rope_layer_interval": _Listed("no_rope_layers", lambda kinds: [int(not kind) for kind in kinds]),
}
_SPARSE: Final = ("decoder_sparse_step", "mlp_only_layers")


def move_kinds(
    config: dict[str, Any], donor: Mapping[str, Any], structure: Structure, stack: Stack, origins: Sequence[LayerOrigin]
) -> tuple[list[str], list[str]]:
    """Make what depends on the number of a layer agree with layers that moved.

    A number from which layers are of another kind is counted anew. A cycle that layers fall out of is written as the
    list that means the same, where the class reads one.

    Args:
        config: the output's config.json, changed in place.
        donor: the donor's, as it was.
        structure: the donor's.
        stack: its layers, which others replace.
        origins: for each output layer where it comes from.

    Returns:
        Notes on what was changed, and problems: settings by name that cannot say of what kind the layers are.
    """
    notes: list[str] = []
    problems: list[str] = []
    in_place = [origin.layer for origin in origins] == list(range(len(stack)))
    for path, mapping in sections(config, structure, stack):
        before = lookup(donor, path)
        if not in_place and before.get("stage_names") == _stage_names(len(stack)):
            indices = _outputs(before.get("out_indices"), len(stack), origins)
            if indices is None:
                problems.append(
                    f"config.json: `{'.'.join((*path, 'out_indices'))}: {before['out_indices']}` says behind which "
                    "layers features are taken, and not each of these is once in the output; take out_indices, "
                    "out_features and stage_names out of the file"
                )
            else:
                mapping["stage_names"] = names = _stage_names(len(origins))
                mapping.update(out_indices=indices, out_features=[names[i] for i in indices])
        for key, value in list(mapping.items()):
            where = ".".join((*path, key))
            stages = before.get(key) if key == _STAGES else None
            if isinstance(stages, list) and len(stages) == len(stack) and not in_place:
                problems.append(
                    f"config.json: `{where}` lists stages, each of another width by its number, so `{stack.prefix}` "
                    "cannot be cut; leave each stage at its position"
                )
            if type(value) is not int:
                continue
            if key in _FROM or key in _UP_TO or key in _LAST:
                moved = _counted(key, path, before, origins)
                if moved is None and not before.get("layer_types"):
                    problems.append(
                        f"config.json: `{where}: {value}` says from which number on layers are of another kind, and "
                        "layers of the output are not in this order; choose ranges that keep each kind together"
                    )
                elif moved is not None and moved != value:
                    mapping[key] = moved
                    notes.append(f"config.json: `{where}` is {moved} now, since the layers that it divides moved")
        for key in sorted(_REPEATED & before.keys()):
            repeated = _repeated(key, path, before, origins)
            if repeated is not None:
                mapping[key] = repeated
                notes.append(f"config.json: `{'.'.join((*path, key))}` lists all layers now, since they moved")
        for key, value in _cycles(mapping, before):
            if value < 2 or not any((i - origin.layer) % value for i, origin in enumerate(origins)):
                continue
            kinds = [(origin.layer + 1) % value == 0 for origin in origins]
            where = ".".join((*path, key))
            if key in _LISTS:
                listed = _LISTS[key]
                mapping[listed.key] = listed.write(kinds)
            elif key == _SPARSE[0]:
                only = before.get(_SPARSE[1]) or ()
                dense = [not kind or origin.layer in only for kind, origin in zip(kinds, origins, strict=True)]
                mapping[key] = 1
                mapping[_SPARSE[1]] = [i for i, yes in enumerate(dense) if yes]
            else:
                problems.append(
                    f"config.json: `{where}: {value}` makes the kind of a layer depend on its number, and layers of "
                    "the output have numbers of another kind than where they come from; choose ranges that move "
                    f"layers by a multiple of {value}"
                )
                continue
            written = _LISTS[key].key if key in _LISTS else _SPARSE[1]
            notes.append(f"config.json: `{written}` lists the layers that `{where}: {value}` gave by their numbers")
    return notes, problems


def _stage_names(depth: int) -> list[str]:
    """Return the names that a backbone with a stage in each layer, a ViT or DINOv2, writes into its config."""
    return ["stem", *(f"stage{i + 1}" for i in range(depth))]


def _outputs(indices: object, depth: int, origins: Sequence[LayerOrigin]) -> list[int] | None:
    """Return behind which layers features are taken, 0 being before the first; None if one is not in the output once.

    The last layer alone, which is the default, remains that.
    """
    if not isinstance(indices, list) or indices in ([depth], [-1]):
        return [len(origins)]
    wanted = {i if i >= 0 else depth + 1 + i for i in indices}
    found = [0] * (0 in wanted) + [i + 1 for i, origin in enumerate(origins) if origin.layer + 1 in wanted]
    return found if len(found) == len(wanted) else None


def _repeated(
    key: str, path: tuple[str, ...], donor: Mapping[str, Any], origins: Sequence[LayerOrigin]
) -> list[Any] | None:
    """Return the kinds of all layers, from a list that is repeated; None where repeating the donor's gives them."""
    donors = donor[key]
    if not isinstance(donors, list) or not donors:
        return None
    lists = [lookup(origin.config, path).get(key) or donors for origin in origins]
    found = [kinds[origin.layer % len(kinds)] for kinds, origin in zip(lists, origins, strict=True)]
    return None if all(kind == donors[i % len(donors)] for i, kind in enumerate(found)) else found


def _cycles(mapping: Mapping[str, Any], before: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the cycles that decide on the kind of a layer: no list does."""
    found = {key: value for key, value in mapping.items() if type(value) is int and _CYCLE.search(key)}
    unstated = _UNSTATED.get(str(mapping.get("model_type")))
    if unstated is not None:
        found.setdefault(*unstated)
    lists = any(
        isinstance(value, list) and value and key.endswith(("_type", "_types")) for key, value in before.items()
    )
    return [
        (key, value)
        for key, value in found.items()
        if not (before.get(_LISTS[key].key) if key in _LISTS else lists and key != _SPARSE[0])
    ]


def _counted(key: str, path: tuple[str, ...], donor: Mapping[str, Any], origins: Sequence[LayerOrigin]) -> int | None:
    """Count anew from which layer on, or how many at the end, are of another kind; None if they are mixed."""
    if key == "max_window_layers" and donor.get("use_sliding_window") is False:
        return None if donor.get("layer_types") else len(origins)
    kinds = []
    for origin in origins:
        value = lookup(origin.config, path).get(key)
        if type(value) is not int:
            value = donor[key]
        if key in _LAST:
            value = origin.depth - value
        elif key in _UP_TO:
            value += 1 if value >= 0 else origin.depth + 1
        kinds.append(origin.layer >= value)
    first = next((i for i, kind in enumerate(kinds) if kind), len(kinds))
    if not all(kinds[first:]):
        return None
    if key in _LAST:
        return len(kinds) - first
    return first - 1 if key in _UP_TO else first
