"""Guesses where the parts of a model are from the names of its tensors, for classes that cannot be built here."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from mol.architecture.skeleton import Paths

if TYPE_CHECKING:
    from collections.abc import Iterable

_NUMBERED: Final = re.compile(r"(?:^|\.)(\d+)\.")
_EMBEDDINGS: Final = re.compile(r"(?:.*\.)?(?:embed_tokens|word_embeddings|token_embedding|wte|shared)")
_HEADS: Final = re.compile(r"(?:.*\.)?lm_head")


def guess_paths(names: Iterable[str]) -> Paths:
    """Take the repeat with most tensors for the blocks, and the usual names for embeddings and head.

    The paths are those in the checkpoint, which may lack a prefix that the class has; what is not found is None.
    """
    repeats: dict[str, set[int]] = defaultdict(set)
    tensors: dict[str, int] = defaultdict(int)
    modules = []
    for name in names:
        match = _NUMBERED.search(name)
        if match is None:
            modules.append(name.removesuffix(".weight"))
            continue
        prefix = name[: match.start()]
        repeats[prefix].add(int(match[1]))
        tensors[prefix] += 1
    stack = max((p for p in repeats if len(repeats[p]) > 1), key=lambda p: (tensors[p], p), default=None)
    return Paths(
        layers=stack,
        blocks=None if stack is None else len(repeats[stack]),
        tower=None,
        embeddings=next((name for name in modules if _EMBEDDINGS.fullmatch(name)), None),
        head=next((name for name in modules if _HEADS.fullmatch(name)), None),
        signature=None,
    )
