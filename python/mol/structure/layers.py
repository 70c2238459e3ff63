"""Finds the layers of a model from the names of its tensors: the numbered repeats."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.regex import regex
from mol.structure.names import natural_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mol.config import ModelReference
    from mol.io.checkpoint import Checkpoint, TensorInfo

_NUMBER: Final = regex(r"(?:^|\.)(0|[1-9][0-9]{0,5})(?=\.|$)")

# A key of config.json that counts layers, e.g. num_hidden_layers, n_layer, encoder_layers, depth; and words that make
# it a count of something else, e.g. max_window_layers, num_nextn_predict_layers, num_kv_shared_layers.
_COUNT_KEY: Final = regex(r"(?:(?:n|num|number_of)_)?(?:[a-z]+_)*(?:layers?|blocks?|depth)")
_OTHER_COUNT: Final = regex(r"max|nextn|mtp|dense|window|first|shared|skip|layerdrop|adapter|projection|predict")

# A key that counts what predicts further tokens (multi-token prediction) and may be stored as layers behind the last.
_TAIL_KEY: Final = regex(r"(?:.*_)?(?:nextn|mtp)(?:_.*)?_(?:layers?|modules?)")

# Words in the path of a stack that make it a side tower of a language model; `vocab_projector` is a DistilBERT's head.
_SIDE_TOWER: Final = regex(
    r"(?:^|(?<!vocab)[._])(?:vision|visual|vit|image|img|audio|speech|sound|video|resampler|connector|projector|merger|qformer|mtp)(?:[._]|$)"
)
_CLEARLY_LARGER: Final = 4

# What the first layer holds for all: T5's table of relative positions, and WavLM's.
_FOR_ALL: Final = regex(r"(?:^|\.)(?:(?:global_)?relative_attention_bias|rel_attn_embed)\.weight$")


@dataclass(frozen=True)
class Stack:
    """A numbered repeat: the layers of one tower.

    Attributes:
        prefix: what stands before the number, e.g. "model.layers"; "" when names start with the number.
        layers: for each layer the endings of its tensors' names, e.g. "mlp.up_proj.weight".
        first: the number of its first layer.
    """

    prefix: str
    layers: tuple[tuple[str, ...], ...]
    first: int = 0

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.layers)

    def start(self, layer: int) -> str:
        """Return what the names of a layer's tensors start with, its dot included."""
        number = self.first + layer
        return f"{self.prefix}.{number}." if self.prefix else f"{number}."

    def names(self, layer: int) -> list[str]:
        """Return the names of a layer's tensors."""
        start = self.start(layer)
        return [start + suffix if suffix else start[:-1] for suffix in self.layers[layer]]

    @cached_property
    def suffixes(self) -> frozenset[str]:
        """Endings that occur in any layer."""
        return frozenset().union(*self.layers)


class Structure(NamedTuple):
    """The parts of a model.

    Attributes:
        stacks: every tower of layers, the main one last.
        main: the tower that slices and layer ranges mean, None where there is none or it is ambiguous.
        ambiguity: why there is no main stack; "" where there is one.
        loose: names of the tensors outside the stacks, in the order of the files.
        tails: what is numbered on behind a stack and is no layer of it: modules that predict further tokens.
    """

    stacks: tuple[Stack, ...]
    main: Stack | None
    ambiguity: str
    loose: tuple[str, ...]
    tails: tuple[Stack, ...] = ()


def find_structure(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Structure:
    """Find the layers of a model, and what is outside of them.

    A repeat is the outermost number in a name, so that the experts inside a layer are part of the layer. It is a stack
    when its layers are numbered 0, 1, 2, ... (or as many as config.json says), hold modules rather than bare
    parameters, and have a name in common. config.json only says how many layers it counts, and how many modules
    that predict further tokens: where the numbers go on by that many, these are no layers (`model.layers.61` of a
    DeepSeek-V3 of 61 layers). A table of positions that the first layer holds for all others is outside of them.
    """
    counts = {value for _, value in layer_counts(config)}
    whole = {count + more: count for count in counts for more in tail_counts(config)}
    cut = {size: count for size, count in whole.items() if size not in counts}
    counts.update(cut)
    groups, loose = _group(tensors)
    for prefix in [p for p, layers in groups.items() if _size(layers) not in counts]:
        inner = _inner(prefix, groups[prefix], counts)
        if inner is not None:
            del groups[prefix]
            split, rest = inner
            groups.update(split)
            loose.extend(rest)
    chosen = [prefix for prefix, layers in groups.items() if _is_stack(layers, counts)]
    if not chosen:
        chosen = [p for p, layers in groups.items() if len(layers) > 1 and _is_contiguous(layers) and _is_alike(layers)]
    stacks = {prefix: _build(prefix, groups.pop(prefix)) for prefix in sorted(chosen)}
    tails = []
    for prefix, stack in stacks.items():
        depth = cut.get(len(stack))
        if depth is not None:
            tails.append(Stack(prefix, stack.layers[depth:], depth))
            stacks[prefix] = Stack(prefix, stack.layers[:depth])
    shared = {name for prefix, stack in stacks.items() for name in _held_for_all(stack)}
    if shared:
        stacks = {prefix: _without(stack, shared) for prefix, stack in stacks.items()}
    if groups or shared:
        outside = {name for prefix, layers in groups.items() for name in _names(prefix, layers)} | shared
        outside.update(loose)
        loose = [name for name in tensors if name in outside]
    main, ambiguity = _main(list(stacks.values()), tensors, config, counts)
    ordered = tuple(s for s in stacks.values() if s is not main) + (() if main is None else (main,))
    return Structure(ordered, main, ambiguity, tuple(loose), tuple(tails))


def find_structures(checkpoints: Mapping[ModelReference, Checkpoint]) -> dict[ModelReference, Structure]:
    """Find the layers of several models."""
    return {name: find_structure(checkpoint.tensors, checkpoint.config) for name, checkpoint in checkpoints.items()}


def in_side_tower(structure: Structure, name: str) -> bool:
    """Return whether a tensor outside the layers belongs to a tower other than the main one, such as its last norm."""
    if structure.main is None:
        return False
    if is_side_tower(name) and not is_side_tower(structure.main.prefix):
        return True
    ours = structure.main.prefix.split(".")
    for stack in structure.stacks:
        parts = stack.prefix.split(".")
        apart = next((i for i, (a, b) in enumerate(zip(parts, ours, strict=False)) if a != b), None)
        if stack is not structure.main and apart is not None and name.startswith(".".join(parts[: apart + 1]) + "."):
            return True
    return False


def layer_counts(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the path and value of each key, at any depth, that counts layers."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from layer_counts(value, (*path, key))
        elif type(value) is int and is_layer_count_key(key):
            yield (*path, key), value


def tail_counts(config: Mapping[str, Any]) -> set[int]:
    """Collect how many modules that predict further tokens config.json counts, at any depth."""
    found = {value for key, value in config.items() if type(value) is int and value > 0 and _TAIL_KEY.fullmatch(key)}
    return found.union(*(tail_counts(value) for value in config.values() if isinstance(value, dict)))


def is_side_tower(prefix: str) -> bool:
    """Return whether a path is that of a tower next to a language model: for images, sound, further tokens."""
    return _SIDE_TOWER.search(prefix) is not None


def is_layer_count_key(key: str) -> bool:
    """Return whether a key of config.json counts layers."""
    word = key.lower()
    return _COUNT_KEY.fullmatch(word) is not None and _OTHER_COUNT.search(word) is None


def map_layers(ours: int, theirs: int) -> tuple[int, ...]:
    """Map the layers of a shallower or deeper model onto ours: first to first, last to last, nearest between."""
    if ours == theirs:
        return tuple(range(ours))
    if ours == 1:
        return (0,)
    # Rounds half up in integers, so that no float decides.
    return tuple((2 * i * (theirs - 1) + ours - 1) // (2 * (ours - 1)) for i in range(ours))


def is_encoder_decoder(stacks: Iterable[Stack], config: Mapping[str, Any]) -> bool:
    """Return whether a model has an encoder and a decoder that both read text."""
    if config.get("is_encoder_decoder") is True:
        return True
    words = [set(stack.prefix.split(".")) for stack in stacks if not is_side_tower(stack.prefix)]
    return any("decoder" in w for w in words) and any("encoder" in w and "decoder" not in w for w in words)


_Layers = dict[int, list[str]]


def _group(tensors: Iterable[str]) -> tuple[dict[str, _Layers], list[str]]:
    """Split names at their first number: prefix -> layer -> endings; and the names without a number."""
    groups: dict[str, _Layers] = {}
    loose: list[str] = []
    search = _NUMBER.search
    start, current = "", loose
    for name in tensors:
        # Most names begin as the one before: with the same layer, which is not searched again.
        if start and name.startswith(start):
            current.append(name[len(start) :])
            continue
        match = search(name)
        if match is None:
            loose.append(name)
            continue
        prefix = name[: match.start()]
        layers = groups.get(prefix)
        if layers is None:
            layers = groups[prefix] = {}
        current = layers.setdefault(int(match[1]), [])
        current.append(name[match.end() + 1 :])
        start = f"{name[: match.end()]}."
    return groups, loose


def _inner(prefix: str, layers: _Layers, counts: set[int]) -> tuple[dict[str, _Layers], list[str]] | None:
    """Find the layers inside a repeat that is none itself, such as the towers of `towers.0.layers.5`."""
    found: dict[str, _Layers] = {}
    rest: list[str] = []
    for layer, suffixes in layers.items():
        start = f"{prefix}.{layer}." if prefix else f"{layer}."
        groups, loose = _group(suffixes)
        found.update({(start + inner).removesuffix("."): inner_layers for inner, inner_layers in groups.items()})
        rest.extend(start + suffix if suffix else start[:-1] for suffix in loose)
    if not any(_size(inner_layers) in counts and _is_stack(inner_layers, counts) for inner_layers in found.values()):
        return None
    return found, rest


def _names(prefix: str, layers: _Layers) -> Iterator[str]:
    start = f"{prefix}." if prefix else ""
    for layer, suffixes in layers.items():
        for suffix in suffixes:
            yield f"{start}{layer}.{suffix}" if suffix else f"{start}{layer}"


def _size(layers: _Layers) -> int:
    return max(layers) + 1


def _is_contiguous(layers: _Layers) -> bool:
    return len(layers) == _size(layers)


def _is_alike(layers: _Layers) -> bool:
    """Return whether some ending occurs in every layer."""
    common: set[str] | None = None
    for suffixes in layers.values():
        common = set(suffixes) if common is None else common.intersection(suffixes)
        if not common:
            return False
    return True


def _is_stack(layers: _Layers, counts: set[int]) -> bool:
    if not any("." in suffix for suffixes in layers.values() for suffix in suffixes):
        return False  # bare parameters: the linear layers of a head, say
    if _size(layers) in counts:
        return len(layers) * 2 > _size(layers)  # pruned layers may hold nothing
    return len(layers) > 1 and _is_contiguous(layers) and _is_alike(layers)


def _build(prefix: str, layers: _Layers) -> Stack:
    return Stack(prefix, tuple(tuple(sorted(layers.get(i, ()), key=natural_key)) for i in range(_size(layers))))


def _held_for_all(stack: Stack) -> list[str]:
    """Name the tensors that the first layer alone has, and that all layers use."""
    first, *others = stack.layers
    names = zip(first, stack.names(0), strict=True)
    return [name for suffix, name in names if _FOR_ALL.search(suffix) and not any(suffix in layer for layer in others)]


def _without(stack: Stack, names: set[str]) -> Stack:
    start = stack.start(0)
    first = tuple(suffix for suffix in stack.layers[0] if start + suffix not in names)
    return Stack(stack.prefix, (first, *stack.layers[1:]), stack.first)


def _main(
    stacks: Sequence[Stack], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], counts: set[int]
) -> tuple[Stack | None, str]:
    """Choose the tower that slices mean, or say why none can be chosen."""
    if not stacks:
        return None, "no numbered layers are found in the names of its tensors"
    if len(stacks) == 1:
        return stacks[0], ""
    listed = ", ".join(f"`{stack.prefix}` ({len(stack)})" for stack in stacks)
    if is_encoder_decoder(stacks, config):
        return None, f"it has an encoder and a decoder ({listed}), and a slice does not say which it means"
    towers = [stack for stack in stacks if not is_side_tower(stack.prefix)] or list(stacks)
    if len(towers) > 1:
        counted = [stack for stack in towers if len(stack) in counts]
        towers = counted or towers
    sizes = {s.prefix: sum(tensors[name].bytes for i in range(len(s)) for name in s.names(i)) for s in towers}
    towers.sort(key=lambda stack: (-sizes[stack.prefix], stack.prefix))
    if len(towers) > 1 and sizes[towers[0].prefix] < _CLEARLY_LARGER * sizes[towers[1].prefix]:
        return None, f"it has several towers of layers ({listed}), and a slice does not say which it means"
    return towers[0], ""
