"""Residence: loads the modules of one model when they are needed, or has all of them in memory."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from mol.core.blocks.placement import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from mol.core.blocks.placement import Memory
    from mol.core.models.weights import ModelWeights


class Residence:
    """The modules of a model; those that are not in memory are loaded when they are needed.

    Without `weights` the model is whole, and nothing is ever loaded.

    Attributes:
        weights: of a model that was built without them, else None.
    """

    def __init__(self, model: PreTrainedModel, weights: ModelWeights | None, memory: Memory | None) -> None:
        """Load modules from `weights`, into memory that they share with others; they stay for good if that is None."""
        self.weights = weights
        self._model = model
        self._memory = memory
        self._paths = {id(module): path for path, module in model.named_modules()}

    def path_of(self, module: nn.Module) -> str:
        """Return the path of a module in the model."""
        path: str = self._paths[id(module)]
        return path

    def require(self, modules: Iterable[nn.Module]) -> None:
        """Load modules, and keep them in memory.

        Raises:
            CheckpointError: one cannot be read.
        """
        if self.weights is not None:
            self.weights.load(self.weights.under(*{self._paths[id(module)] for module in modules}))

    def require_around(self, stack: str, owner: nn.Module | None = None, *, skip_missing: bool = False) -> None:
        """Load all but a stack of blocks, of the model or of a part of it, and keep it in memory.

        Raises:
            CheckpointError: something cannot be read.
        """
        if self.weights is not None:
            path = "" if owner is None else self._paths[id(owner)]
            around = self.weights.under(path) if path else self.weights.outside()
            self.weights.load(around & self.weights.outside(stack), skip_missing=skip_missing)

    def apply(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Move or cast the model, as `nn.Module.to` does."""
        if self.weights is None:
            self._model._apply(fn)
        else:
            self.weights.apply(fn)

    def noise(self) -> AbstractContextManager[None]:
        """Return a context in which weights that are not loaded are noise, to trace which tensor goes where."""
        return nullcontext() if self.weights is None else self.weights.noise()

    def visited(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which a module is in memory; afterwards it is only if it was before."""
        return nullcontext() if self.weights is None else self.weights.visited(self._paths[id(module)])

    @contextmanager
    def held(self, module: nn.Module, place: Place | None) -> Iterator[torch.device | None]:
        """Keep a module in memory while it runs, and afterwards if there is room; yield its device if it has one.

        Raises:
            CheckpointError: it cannot be read.
            FusionError: it is larger than the limit.
        """
        if self.weights is None:
            yield None
            return
        path, place = self._paths[id(module)], place or Place()
        if self._memory is None:
            self.weights.load(self.weights.under(path), place.device)
            yield place.device
        else:
            with self._memory.hold(self.weights, path, place):
                yield place.device
