"""Builds a model without memory, on torch's meta device, and looks up where its parts are."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final, NamedTuple

from mol.architecture.blocks import find_block_lists, models_around
from mol.errors import ArchitectureError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

_TEXT_WORDS: Final = frozenset({"language_model", "text_model"})


class Paths(NamedTuple):
    """Where the parts of a model are.

    Attributes:
        layers: path of the list of blocks.
        blocks: its length.
        tower: the config of the model around the list, which may be a part of the whole config.
        embeddings: path of what the blocks' input is looked up in.
        head: path of what turns hidden states into logits over the vocabulary.
        signature: parameters of a block's forward, and whether each must be given.
    """

    layers: str | None
    blocks: int | None
    tower: PreTrainedConfig | None
    embeddings: str | None
    head: str | None
    signature: dict[str, bool] | None


def read_paths(model_class: type[PreTrainedModel], config: PreTrainedConfig, name: str, *, encoder: bool) -> Paths:
    """Build a model of this class without weights and find its parts.

    Args:
        model_class: the class.
        config: its config; it is not changed.
        name: what messages call the model.
        encoder: prefer the encoder where there are several towers.

    Raises:
        ArchitectureError: the class does not take the config.
    """
    model = build_skeleton(model_class, config, name)
    names = {id(module): path for path, module in model.named_modules()}
    head = names.get(id(model.get_output_embeddings()))
    stack = _find_stack(model, encoder=encoder)
    if stack is None:
        return Paths(None, None, None, names.get(id(_embeddings(model))), head, None)
    path, blocks = stack
    owner = _owner(model, path)
    embeddings = names.get(id(_embeddings(model, owner)))
    return Paths(path, len(blocks), owner.config, embeddings, head, block_signature(blocks[0]))


def build_skeleton(model_class: type[PreTrainedModel], config: PreTrainedConfig, name: str) -> PreTrainedModel:
    """Build a model on the meta device, where tensors have shapes only.

    Raises:
        ArchitectureError: the class does not take the config.
    """
    import copy

    import torch

    try:
        with torch.device("meta"):
            return model_class(copy.deepcopy(config))
    # Whatever a class trips over in a config that it was not written for; that is the model's fault, not ours.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ArchitectureError(
            f"{name}: {model_class.__name__} cannot be built from its config.json ({type(error).__name__}: {error}); "
            "check the file, or install the transformers release that the model was made with"
        ) from error


def block_signature(block: nn.Module) -> dict[str, bool]:
    """Return the parameters of a block's forward, and whether each must be given."""
    parameters = inspect.signature(type(block).forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: p.default is p.empty for p in named if p.name != "self"}


def _find_stack(model: PreTrainedModel, *, encoder: bool) -> tuple[str, nn.ModuleList] | None:
    """Return the outermost list of blocks of the tower that is wanted, by its path."""

    def rank(stack: tuple[str, nn.ModuleList]) -> tuple[bool, bool, bool, int]:
        words = stack[0].split(".")
        textual = "input_ids" in inspect.signature(type(_owner(model, stack[0])).forward).parameters
        weights = sum(parameter.numel() for parameter in stack[1].parameters())
        return encoder and "encoder" in words, textual, not _TEXT_WORDS.isdisjoint(words), weights

    return max(find_block_lists(model, stages=True), key=rank, default=None)


def _owner(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """Return the innermost model around a path."""
    return next((owner for _, owner in models_around(model, path)), model)


def _embeddings(*models: PreTrainedModel) -> nn.Module | None:
    """Return the input embeddings of the first of these models that has any."""
    for model in models:
        try:
            found: nn.Module | None = model.get_input_embeddings()
        except NotImplementedError:  # how transformers says that a class has none
            continue
        if found is not None:
            return found
    return None
