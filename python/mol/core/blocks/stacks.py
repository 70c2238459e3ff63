"""Finds the stacks of blocks in a model by their structure, and the part of the model that calls each."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, NamedTuple

from mol.architecture.blocks import find_block_lists, models_around
from mol.errors import ArchitectureError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class FoundStack(NamedTuple):
    """A list of blocks.

    Attributes:
        path: of the list in the model, e.g. `transformer.h`.
        blocks: the list.
        owners: the models around it with their paths, innermost first; one of them calls the blocks.
    """

    path: str
    blocks: nn.ModuleList
    owners: tuple[tuple[str, PreTrainedModel], ...]


def find_stacks(model: PreTrainedModel) -> list[FoundStack]:
    """Return the outermost lists whose elements are all blocks, in the order of the modules."""
    return [FoundStack(path, found, tuple(models_around(model, path))) for path, found in find_block_lists(model)]


def choose_stack(model: PreTrainedModel, name: str, wanted: str | None = None) -> FoundStack:
    """Return the stack that `wanted` names by its path or a part of it; if None the text stack with most weights.

    Of a model with encoder and decoder that is the encoder: its blocks need nothing but hidden states.

    Args:
        model: the model.
        name: its name in messages.
        wanted: path of a list of blocks, or a part of one path only.

    Raises:
        ArchitectureError: the model has no stack, or `wanted` names none or several.
    """
    stacks = find_stacks(model)
    listed = ", ".join(f"`{stack.path}` ({len(stack.blocks)})" for stack in stacks) or "none"
    if not stacks:
        raise ArchitectureError(
            f"{name} ({type(model).__name__}): no list of blocks was found in its modules, so none can be run alone"
        )
    if wanted is not None:
        named = [stack for stack in stacks if stack.path == wanted] or [s for s in stacks if wanted in s.path]
        if len(named) != 1:
            raise ArchitectureError(
                f"{name}: `{wanted}` names {len(named)} of its stacks of blocks, wanted one of: {listed}"
            )
        return named[0]
    encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))

    def rank(stack: FoundStack) -> tuple[bool, bool, bool, int]:
        textual = any("input_ids" in inspect.signature(owner.forward).parameters for _, owner in stack.owners[:1])
        words = stack.path.split(".")
        role = "encoder" in words if encoder_decoder else "language_model" in words or "text_model" in words
        weights = list(stack.blocks.parameters())
        # Convolutions alone are a feature encoder of sound or images before the blocks.
        return role, textual, any(weight.dim() == 2 for weight in weights), sum(weight.numel() for weight in weights)

    return max(stacks, key=rank)
