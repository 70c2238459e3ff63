"""Checks that a model has what its own config.json counts: all layers, both ends, its towers."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from mol.regex import regex
from mol.structure.layers import in_side_tower, is_layer_count_key, is_side_tower, layer_counts
from mol.structure.model_config import text_sections
from mol.structure.names import EMBEDDING, HEAD, side_of
from mol.text import ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mol.merge.mismatch import Mismatches
    from mol.merge.model import Model
    from mol.structure.layers import Stack

    _Counts = Sequence[tuple[str, int]]  # keys of config.json that count layers, and what they say

# The keys that count all layers of a tower; others may count some of them, or what is no layer.
_PLAIN: Final = frozenset(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers", "encoder_layers", "decoder_layers")
)

# Keys that make a tower one or several layers shorter than counted: drop_vision_last_layer, vision_feature_layer.
_CUT: Final = regex(r"(?:drop|select|feature).*layer")
_TOWERS: Final = {
    "vision": ("vision", "visual", "vit", "image"),
    "audio": ("audio", "speech", "sound"),
    "text": ("text",),
}
_REPEAT: Final = regex(r"(?:^|\.)(?:layers?|blocks?|h)\.([0-9]{1,6})\.")
_INNER: Final = regex(r"(?:layers|blocks)\.[0-9]{1,6}\.")
_PRE_NORM: Final = regex(r"(?:input_layernorm|attention_norm|pre_attention_layernorm)\.weight")
_NORM: Final = regex(r"(?:\w*norm\w*|ln_f)\.weight")
_AGAIN: Final = "fetch or save the model again"


def check_complete(models: Sequence[Model], problems: Mismatches) -> None:
    """Refuse models that lack layers, ends or towers; what a class would fill with random numbers is no model.

    Only what is certain is refused: config.json counts it, or the other models have it.

    Args:
        models: every model that takes part, the donor first.
        problems: where everything that does not fit goes.
    """
    for model in models:
        for problem in (*_wrong_depths(model), *_empty_layers(model), *_gaps(model, models)):
            problems.add(problem)
    for problem in _lacking_towers(models[0]):
        problems.add(problem)
    ends = [_Ends(model) for model in models]
    for end in ends:
        for what in end.lacks(ends):
            problems.add(f"{end.model.checkpoint.directory}: {what}; {_AGAIN}")


def _wrong_depths(model: Model) -> Iterator[str]:
    """Compare how many layers config.json counts with those in the tensors, tower by tower."""
    structure, config = model.structure, model.checkpoint.config
    if config.get("is_encoder_decoder") is True and structure.main is None:
        yield from _wrong_sides(model)
        return
    main = structure.main
    language = [
        (key, value)
        for section in text_sections(config)
        if _is_tower(section)
        for key, value in section.items()
        if type(value) is int and is_layer_count_key(key)
    ]
    if any(key in _PLAIN for key, _ in language):
        if main is None:
            yield from _compare_repeats(model, language) if not structure.stacks else ()
        elif _is_only_side_tower(main, config):
            yield _describe(model, language, f"none except those of `{main.prefix}`")
        else:
            yield from _compare(model, [main], language, ())
    for key, section in config.items():
        words = _TOWERS.get(key.removesuffix("_config"))
        if words is None or not isinstance(section, dict) or (key.startswith("text") and main is not None):
            continue
        counts = [(f"{key}.{'.'.join(path)}", value) for path, value in layer_counts(section)]
        stacks = [stack for stack in structure.stacks if not set(words).isdisjoint(re.split(r"[._]", stack.prefix))]
        if "depth" in section or not _PLAIN.isdisjoint(section):
            yield from _compare(model, stacks, counts, _cuts(config))


def _lacking_towers(donor: Model) -> Iterator[str]:
    """Report towers that config.json describes and of which nothing is stored: loading would initialise them at random.

    Another input may be a fine-tune of the language model that kept the config.json of the whole.
    """
    config = donor.checkpoint.config
    for key, section in config.items():
        tower = key.removesuffix("_config")
        if tower not in {"vision", "audio"} or not isinstance(section, dict) or not _generates(config):
            continue
        counts = [(f"{key}.{name}", section[name]) for name in section if name in {*_PLAIN, "depth"}]
        part = re.compile("|".join((*_TOWERS[tower], "img", "encoder", "conformer")))
        # One without a name, such as the `blocks` of a Cosmos3, has as many layers as are counted.
        depths = {len(stack) for stack in donor.structure.stacks if stack is not donor.structure.main}
        if counts and depths.isdisjoint(n for _, n in counts) and not any(map(part.search, donor.checkpoint.tensors)):
            yield _describe(donor, [(k, n) for k, n in counts if type(n) is int], f"no tensor of a tower for {tower}")


def _wrong_sides(model: Model) -> Iterator[str]:
    """Compare encoder and decoder with what is counted for each, or for both."""
    counts = [(".".join(path), value) for path, value in layer_counts(model.checkpoint.config)]
    of_both = [(key, n) for key, n in counts if key in _PLAIN and "coder" not in key]
    for side, other in (("encoder", "decoder"), ("decoder", "encoder")):
        form = re.compile(rf"(?:n_|num_)?{side}_layers|{side}(?:_config)?\.(?:{'|'.join(_PLAIN)})")
        mine = [(key, n) for key, n in counts if form.fullmatch(key)]
        paths = ((stack, stack.prefix) for stack in model.structure.stacks)
        stacks = [stack for stack, path in paths if side in path and other not in path]
        if stacks:
            yield from _compare(model, stacks, mine or of_both, ())
        else:
            yield from _compare_repeats(model, mine or of_both, side)


def _is_only_side_tower(main: Stack, config: Mapping[str, Any]) -> bool:
    """Return whether the largest tower is a side tower, so that nothing is left of the language model."""
    return _generates(config) and is_side_tower(main.prefix) and sum(1 for _ in text_sections(config)) > 1


def _generates(config: Mapping[str, Any]) -> bool:
    classes = json.dumps(config.get("architectures"))
    return "ForCausalLM" in classes or "ForConditionalGeneration" in classes


def _is_tower(section: Mapping[str, Any]) -> bool:
    """Return whether a section describes a whole transformer: it counts its layers."""
    return "vocab_size" in section or {"hidden_size", "num_attention_heads"} <= section.keys()


def _cuts(config: Mapping[str, Any]) -> set[int]:
    """Collect by how many layers a tower may be shorter than counted, since only states before its end are used."""
    found = set()
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _cuts(value)
        elif _CUT.search(key):
            for number in value if isinstance(value, list) else [value]:
                if number is True:
                    found.add(1)
                elif type(number) is int and number < 0:
                    found.add(-number - 1)
    return found


def _compare(model: Model, stacks: Sequence[Stack], counts: _Counts, cuts: Iterable[int]) -> Iterator[str]:
    """Report towers of which none has as many layers as are counted."""
    cuts = {0, *cuts, *_apart(model.checkpoint.config)}
    wanted = {count - cut for _, count in counts for cut in cuts}
    if not stacks or not counts or any(len(stack) in wanted or _inner_layers(stack) in wanted for stack in stacks):
        return
    found = max(stacks, key=len)
    have = [layer for layer in range(len(found)) if found.layers[layer]]
    yield _describe(model, counts, f"{len(have)} (`{found.prefix}`, numbers {ranges(have)})")


def _apart(config: Mapping[str, Any]) -> set[int]:
    """Count the entries of per-layer lists that make half a layer one: "mlp" next to the attention before it."""
    lists = [value for part in text_sections(config) for value in part.values() if isinstance(value, list)]
    return {value.count("mlp") for value in lists}


def _inner_layers(stack: Stack) -> int:
    """Count the layers inside of stages, such as `stages.0.layers.5`."""
    return sum(len({m[0] for suffix in layer if (m := _INNER.match(suffix))}) for layer in stack.layers)


def _compare_repeats(model: Model, counts: _Counts, side: str = "") -> Iterator[str]:
    """Report layers that are too few to be a tower, such as one alone."""
    found = ((name, _REPEAT.search(name)) for name in model.checkpoint.tensors)
    numbers = {int(match[1]) for name, match in found if match is not None and side in name[: match.start()]}
    if numbers and counts and len(numbers) < min(count for _, count in counts):
        yield _describe(model, counts, f"{len(numbers)} ({side}{side and ', '}numbers {ranges(numbers)})")


def _describe(model: Model, counts: _Counts, found: str) -> str:
    listed = ", ".join(f"{key}: {count}" for key, count in counts if key.rpartition(".")[2] in {*_PLAIN, "depth"})
    listed = listed or ", ".join(f"{key}: {count}" for key, count in counts)
    return (
        f"{model.checkpoint.directory / 'config.json'} counts other layers than the tensors hold ({listed}): found "
        f"{found}; {_AGAIN}, or correct its config.json"
    )


def _empty_layers(model: Model) -> Iterator[str]:
    """Report layers of which nothing is stored, where no list in config.json makes them a kind of their own."""
    for stack in model.structure.stacks:
        empty = {layer for layer in range(len(stack)) if not stack.layers[layer]}
        if empty and not _explained(model.checkpoint.config, len(stack), empty):
            start = f"{stack.prefix}." if stack.prefix else ""
            yield (
                f"{model.checkpoint.directory}: of its {len(stack)} layers, `{start}{ranges(empty)}` hold no tensor, "
                f"and config.json says nothing of that; {_AGAIN}"
            )


def _gaps(model: Model, models: Sequence[Model]) -> Iterator[str]:
    """Report tensors that only one layer lacks, where nothing makes that layer a kind of its own.

    Only a layer between others is looked at, that has nothing else instead of what it lacks: the first and the
    last are made otherwise in many models, and those that lack something with others of their kind may be as well.
    What another model has is reported where the two are compared.
    """
    for stack in model.structure.stacks:
        counts = Counter(suffix for layer in stack.layers for suffix in layer)
        for layer in range(1, len(stack) - 1):
            own = set(stack.layers[layer])
            gaps = [suffix for suffix, count in counts.items() if count == len(stack) - 1 and suffix not in own]
            gaps = [s for s in gaps if not any(stack.start(layer) + s in other.checkpoint.tensors for other in models)]
            if (
                own
                and gaps
                and min(counts[suffix] for suffix in own) > 1
                and not _names(model.checkpoint.config, len(stack), layer)
            ):
                listed = ", ".join(f"`{stack.start(layer)}{suffix}`" for suffix in gaps[:3])
                more = f" and {len(gaps) - 3} more" if len(gaps) > 3 else ""
                yield (
                    f"{model.checkpoint.directory}: {listed}{more} is not among its tensors, which every other layer "
                    f"of `{stack.prefix}` has, and config.json says nothing of that; {_AGAIN}"
                )


def _names(config: Mapping[str, Any], depth: int, layer: int) -> bool:
    """Return whether config.json makes a layer one of another kind, in a list of all layers or of numbers of some."""
    for value in config.values():
        if isinstance(value, dict) and _names(value, depth, layer):
            return True
        if isinstance(value, list) and (layer in value or layer + 1 in value) and len(value) < depth:
            return True
    return _explained(config, depth, {layer})


def _explained(config: Mapping[str, Any], depth: int, empty: set[int]) -> bool:
    """Return whether some list with one entry per layer has other entries for these layers than for the rest."""
    for value in config.values():
        if isinstance(value, dict) and _explained(value, depth, empty):
            return True
        if isinstance(value, list) and len(value) == depth:
            entries = [json.dumps(entry, sort_keys=True) for entry in value]
            if {entries[i] for i in empty}.isdisjoint(entries[i] for i in range(depth) if i not in empty):
                return True
    return False


class _Ends:
    """What a model has before and behind the layers of its language model."""

    def __init__(self, model: Model) -> None:
        structure, tensors = model.structure, model.checkpoint.tensors
        self.model = model
        self.main = structure.main
        loose = [name for name in structure.loose if not in_side_tower(structure, name)]
        matrices = [name for name in loose if len(tensors[name].shape) == 2]
        self.sections = list(text_sections(model.checkpoint.config))
        rows = next((s["vocab_size"] for s in self.sections[::-1] if type(s.get("vocab_size")) is int), None)
        named = [name for name in matrices if EMBEDDING.search(name)]
        heads = [name for name in loose if "head" in name or HEAD.search(name)]
        large = [name for name in matrices if rows is not None and max(tensors[name].shape) >= rows]
        self.rows = rows
        # A BLT has it in the encoder of its bytes, next to the layers that are the main ones.
        apart = [name for name in structure.loose if EMBEDDING.search(name) and not is_side_tower(name)]
        self.embeddings = (
            named
            or [name for name in large if name not in heads]
            or [name for name in apart if rows is not None and tensors[name].shape[0] >= rows]
        )
        self.heads = heads or [name for name in large if name not in self.embeddings[:1]]
        parents = [] if self.main is None else self.main.prefix.split(".")
        around = {".".join(parents[:i]) for i in range(len(parents))}
        self.norms = [
            name
            for name in loose
            for parent, rest in [_split(name)]
            if parent in around and _NORM.fullmatch(rest) and side_of(name) == "last"
        ]

    @property
    def is_causal(self) -> bool:
        """Whether the class that was saved makes scores of tokens from the layers."""
        classes = self.model.checkpoint.config.get("architectures")
        words = ("ForCausalLM", "LMHeadModel")
        return isinstance(classes, list) and any(word in str(name) for name in classes for word in words)

    def lacks(self, others: Sequence[_Ends]) -> Iterator[str]:
        """Report what is not there and must be."""
        if self.main is None or _is_only_side_tower(self.main, self.model.checkpoint.config):
            return
        config = f"config.json says {self._class()}"
        kin = [end for end in others if end.main is not None and end.main.suffixes & self.main.suffixes]
        if not self.embeddings:
            if self.is_causal and self.rows is not None and (self._says_untied() or not self.heads):
                yield f"no embedding of tokens is among its tensors, and {config} with vocab_size {self.rows}"
            elif found := next((end for end in kin if end.named_embedding), None):
                yield f"no embedding of tokens is among its tensors; {found.model.label} has `{found.embeddings[0]}`"
        if not self.norms:
            what = "the norm behind the last layer is not among its tensors"
            if self._is_decoder() and all(any(map(_PRE_NORM.fullmatch, layer)) for layer in self.main.layers if layer):
                yield f"{what}, and its layers are of a kind that has one"
            elif found := next((end for end in kin if end.norms), None):
                yield f"{what}; {found.model.label} has `{found.norms[0]}`"
        if self.embeddings and not self.heads and self.is_causal and self._says_untied() and "." in self.main.prefix:
            yield f"no head (`lm_head`) is among its tensors, and {config} with tie_word_embeddings false"

    @property
    def named_embedding(self) -> bool:
        """Whether there is an embedding, by its name."""
        return any(map(EMBEDDING.search, self.embeddings))

    def _is_decoder(self) -> bool:
        """Return whether an embedding of tokens is next to the layers, as `model.embed_tokens` is to `model.layers`."""
        assert self.main is not None
        around = self.main.prefix.rpartition(".")[0]
        return any(EMBEDDING.search(name) and _split(name)[0] == around for name in self.embeddings)

    def _class(self) -> str:
        classes = self.model.checkpoint.config.get("architectures")
        return str(classes[0]) if isinstance(classes, list) and classes else "a model"

    def _says_untied(self) -> bool:
        flags = {section.get("tie_word_embeddings") for section in self.sections}
        return False in flags and True not in flags


def _split(name: str) -> tuple[str, str]:
    """Split a name before the module that holds the weight: `model` and `norm.weight`."""
    words = name.split(".")
    return ".".join(words[:-2]), ".".join(words[-2:])
