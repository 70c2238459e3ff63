"""Finds the stacks of blocks in a model by their structure, and the model part that drives each."""

from __future__ import annotations

import inspect
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from mol.errors import ArchitectureError

_BLOCK_WORDS = ("Layer", "Block", "Group")


class FoundStack(NamedTuple):
    """A list of blocks.

    Attributes:
        path: where the list is in the model, e.g. `transformer.h`.
        blocks: the list.
        owners: the models around it with their paths, innermost first; one of them drives the blocks.
    """

    path: str
    blocks: nn.ModuleList
    owners: tuple[tuple[str, PreTrainedModel], ...]


def find_stacks(model: PreTrainedModel) -> list[FoundStack]:
    """Return the outermost lists whose elements are all blocks, in the order of the modules."""
    found: list[FoundStack] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        if any(path.startswith(f"{stack.path}.") for stack in found):
            continue
        if _are_blocks(list(module)):
            found.append(FoundStack(path, module, _owners(model, path)))
    return found


def choose_stack(model: PreTrainedModel, name: str, wanted: str | None = None) -> FoundStack:
    """Return the stack that `wanted` names by its path or a part of it; without it the text stack with most weights.

    Of a model with encoder and decoder that is the encoder: its blocks need nothing but hidden states.

    Args:
        model: the model.
        name: what messages call it.
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

    def rank(stack: FoundStack) -> tuple[bool, bool, int]:
        textual = any("input_ids" in inspect.signature(owner.forward).parameters for _, owner in stack.owners[:1])
        words = stack.path.split(".")
        role = "encoder" in words if encoder_decoder else "language_model" in words or "text_model" in words
        return role, textual, sum(parameter.numel() for parameter in stack.blocks.parameters())

    return max(stacks, key=rank)


def _are_blocks(modules: list[nn.Module]) -> bool:
    if any(isinstance(module, nn.ModuleList) or next(module.children(), None) is None for module in modules):
        return False
    if all(isinstance(module, GradientCheckpointingLayer) for module in modules):
        return True
    if all(any(word in type(module).__name__ for word in _BLOCK_WORDS) for module in modules):
        return True
    return all(_has_attention_and_norm(module) for module in modules)


def _has_attention_and_norm(module: nn.Module) -> bool:
    inner = [type(child).__name__ for child in module.modules()]
    return any("Attention" in name for name in inner) and any("Norm" in name for name in inner)


def _owners(model: PreTrainedModel, path: str) -> tuple[tuple[str, PreTrainedModel], ...]:
    parts = path.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1)]
    modules = [(prefix, model.get_submodule(prefix)) for prefix in prefixes]
    return tuple((prefix, module) for prefix, module in modules if isinstance(module, PreTrainedModel))
