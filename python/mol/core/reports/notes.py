"""Notes on what a block does without in a host: its own model's input, its tokens, another stack of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mol.core.blocks.inputs import takes
from mol.core.blocks.stacks import find_stacks

if TYPE_CHECKING:
    from mol.core.blocks.source import Source


class Note(NamedTuple):
    """A fact about the blocks of a model in a host.

    Attributes:
        fact: in a few words.
        sentence: in full.
    """

    fact: str
    sentence: str


def blank_content(source: Source, where: str) -> Note | None:
    """Return a note on blocks that are handed more of an input than hidden states, None if they are not.

    Args:
        source: a model.
        where: which of its blocks get a blank input.
    """
    if not source.sees_content():
        return None
    return Note(
        "blank content",
        f"{source.name} ({type(source.model).__name__}): its model hands its blocks more of its input than hidden "
        "states, such as embeddings of its own for each layer, or the first hidden state; "
        f"{where} get those of a blank input",
    )


def foreign_notes(source: Source, host: Source, *, chosen: bool) -> list[Note]:
    """Return the notes on another model's blocks in a host.

    Args:
        source: the other model.
        host: the host.
        chosen: whether the user chose among its stacks of blocks.
    """
    who = f"{source.name} ({type(source.model).__name__})"
    notes = [note for note in [blank_content(source, "in a host they")] if note is not None]
    own, reads = _reads(source), _reads(host)
    if own != reads or source.made_causal or not source.known_causal or source.model.config.is_encoder_decoder:
        made = ", behind causal masks that they were not trained with" if source.made_causal else ""
        notes.append(
            Note(
                "on the host's tokens",
                f"{who}: its blocks run on the host's {reads} and hidden states, not on its own {own}{made}; adapters "
                "that are fitted (adapter_init) or trained translate",
            )
        )
    stacks = [stack.path for stack in find_stacks(source.model)]
    if len(stacks) > 1 and not chosen:
        others = ", ".join(f"`{path}`" for path in stacks if path != source.stack)
        notes.append(
            Note(
                f"blocks of `{source.stack}`",
                f"{who}: its blocks are those of `{source.stack}`; stacks={{{source.name!r}: ...}} chooses among "
                f"{others} instead",
            )
        )
    return notes


def _reads(source: Source) -> str:
    for name, what in (("input_ids", "tokens"), ("pixel_values", "patches of images")):
        if takes(source.model, name):
            size = getattr(source.model.config.get_text_config(), "vocab_size", None)
            return f"{what} (vocabulary {size})" if what == "tokens" else what
    return "sounds or series"
