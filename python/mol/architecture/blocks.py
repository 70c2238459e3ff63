"""Finds the lists of blocks in a model by their structure, and the models around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_BLOCK_WORDS: Final = ("Layer", "Block", "Group")


def find_block_lists(model: PreTrainedModel, *, stages: bool = False) -> list[tuple[str, nn.ModuleList]]:
    """Return the outermost lists whose elements are all blocks, with their paths, in the order of the modules.

    Args:
        model: the model, with or without weights.
        stages: count the stages of an image model too, which change the shape of what goes through them.
    """
    from torch import nn

    found: list[tuple[str, nn.ModuleList]] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer, _ in found):
            continue
        if _are_blocks(list(module), (*_BLOCK_WORDS, "Stage") if stages else _BLOCK_WORDS):
            found.append((path, module))
    return found


def models_around(model: PreTrainedModel, path: str) -> list[tuple[str, PreTrainedModel]]:
    """Return the models around a path with their own paths, innermost first."""
    from transformers import PreTrainedModel

    parts = path.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1)]
    modules = [(prefix, model.get_submodule(prefix)) for prefix in prefixes]
    return [(prefix, module) for prefix, module in modules if isinstance(module, PreTrainedModel)]


def _are_blocks(modules: list[nn.Module], words: tuple[str, ...]) -> bool:
    from torch import nn
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not modules or any(isinstance(m, nn.ModuleList) or next(m.children(), None) is None for m in modules):
        return False
    if all(isinstance(module, GradientCheckpointingLayer) for module in modules):
        return True
    if all(any(word in type(module).__name__ for word in words) for module in modules):
        return True
    return all(_has_attention_and_norm(module) for module in modules)


def _has_attention_and_norm(module: nn.Module) -> bool:
    inner = [type(child).__name__ for child in module.modules()]
    return any("Attention" in name for name in inner) and any("Norm" in name for name in inner)
