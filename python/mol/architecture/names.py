"""Guesses where the parts of a model are from the names of its tensors, for classes that cannot be built here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mol.architecture.skeleton import Paths
from mol.io.checkpoint import TensorInfo
from mol.structure.layers import find_structure
from mol.structure.names import EMBEDDING, HEAD

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Mapping


def guess_paths(names: Iterable[str], config: Mapping[str, Any]) -> Paths:
    """Take the main tower of layers for the blocks, or the one with most tensors, and the usual embeddings and head.

    The paths are those in the checkpoint, which may lack a prefix that the class has; what is not found is None.

    Args:
        names: the model's tensors.
        config: its config.json, which may count the layers.
    """
    found = find_structure(dict.fromkeys(names, TensorInfo("", (), 1, 0)), config)  # by number, as sizes are not known
    stack = found.main or max(found.stacks, key=lambda s: (sum(map(len, s.layers)), s.prefix), default=None)

    def module(pattern: re.Pattern[str]) -> str | None:
        return next((name.removesuffix(".weight") for name in found.loose if pattern.search(name)), None)

    return Paths(
        layers=None if stack is None else stack.prefix,
        blocks=None if stack is None else len(stack),
        tower=None,
        embeddings=module(EMBEDDING),
        head=module(HEAD),
        signature=None,
    )
