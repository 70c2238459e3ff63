"""Divides a model into modules by the names of its tensors: text decoder, towers for images and sound, projectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.regex import regex
from mol.structure.layers import is_encoder_decoder, is_side_tower
from mol.structure.names import side_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mol.structure.layers import Stack, Structure

DEFAULT: Final = "default"
"""The one module of most models; in a recipe every module that it does not name."""

TEXT: Final = "text_decoder"
_ENCODER, _DECODER = "encoder", "decoder"

# What may stand before the name of a module.
_WRAPPERS: Final = frozenset(("model", "transformer", "base_model", "thinker"))
# By the word that a module begins with, first match wins.
_ROLES: Final = (
    (
        "multi_modal_projector",
        regex(r"projector|connector|merger|resampler|qformer|aligner|multi_?modal|^mm_|^embed_(?:vision|audio)$"),
    ),
    ("vision_tower", regex(r"(?:^|_)(?:vision|visual|vit|image|img)(?:_|$)")),
    ("audio_tower", regex(r"(?:^|_)(?:audio|speech|sound)(?:_|$)")),
)
_OTHER_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    TEXT: ("language_model", "text_model", "llm", "text"),
    "vision_tower": ("vision_model", "vision_encoder", "visual_encoder", "visual", "vision"),
    "audio_tower": ("audio_model", "audio_encoder", "audio"),
    "multi_modal_projector": ("mm_projector", "projector", "connector", "multimodal_projector"),
}


class Modules(NamedTuple):
    """The modules of a model.

    Attributes:
        of: the module of each tensor outside the layers, and of each stack by its prefix.
        words: for each module, in the order of the model, the words for it.
    """

    of: Mapping[str, str]
    words: Mapping[str, frozenset[str]]

    def named(self, word: str) -> str | None:
        """Find a module by a word for it."""
        return next((name for name, words in self.words.items() if word in words), None)

    def tensors(self, name: str, structure: Structure) -> Iterable[str]:
        """Yield the names of a module's tensors."""
        yield from (tensor for tensor in structure.loose if self.of[tensor] == name)
        for stack in structure.stacks:
            if self.of[stack.prefix] == name:
                yield from (tensor for layer in range(len(stack)) for tensor in stack.names(layer))


def find_modules(structure: Structure, config: Mapping[str, Any]) -> Modules:
    """Find the modules of a model: one, `default`, where it has one tower of layers and nothing next to it.

    They have the names that recipes of mergekit give them, and answer to those that tensors begin with, too: a
    `visual` is a `vision_tower`. Ends of an encoder and a decoder belong to the side where they stand.
    """
    two_sided = is_encoder_decoder(structure.stacks, config)
    of: dict[str, str] = {}
    words: dict[str, set[str]] = {}
    for path in (*structure.loose, *(stack.prefix for stack in structure.stacks)):
        head = next((word for word in path.split(".") if word not in _WRAPPERS), path)
        role = next((name for name, pattern in _ROLES if pattern.search(head)), None)
        known = role is not None
        if role is None and two_sided:
            side = next((word for word in path.replace(".", "_").split("_") if word in (_ENCODER, _DECODER)), None)
            known = side is not None
            head = role = side or (_DECODER if side_of(path) == "last" else _ENCODER)
        of[path] = role or TEXT
        words.setdefault(of[path], set()).update((head,) if known or head in _OTHER_WORDS[TEXT] else ())
    if len(words) == 1:
        return Modules(dict.fromkeys(of, DEFAULT), {DEFAULT: frozenset((DEFAULT,))})
    order = [*(of[stack.prefix] for stack in structure.stacks[::-1]), *words]
    return Modules(
        of, {name: frozenset((name, *words[name], *_OTHER_WORDS.get(name, ()))) for name in dict.fromkeys(order)}
    )


def stacks_of(modules: Modules, name: str, structure: Structure) -> list[Stack]:
    """Return the stacks of layers that a module has; of an encoder with a tower for images in it, its own."""
    stacks = [stack for stack in structure.stacks if modules.of[stack.prefix] == name]
    return [stack for stack in stacks if not is_side_tower(stack.prefix)] or stacks
