"""What of one model is in memory: all of it, or the blocks that run and what else was asked for."""

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
    """The modules of a model, of which those that are not in memory come when they are wanted.

    Without `weights` the model is whole, and nothing here has anything to do.

    Attributes:
        weights: of a model that was built without them, else None.
    """

    def __init__(self, model: PreTrainedModel, weights: ModelWeights | None, memory: Memory | None) -> None:
        """Say where modules come from, and which room they share with others; they stay for good if None."""
        self.weights = weights
        self._model = model
        self._memory = memory
        self._paths = {id(module): path for path, module in model.named_modules()}

    def path_of(self, module: nn.Module) -> str:
        """Return the path of a module in the model."""
        path: str = self._paths[id(module)]
        return path

    def require(self, modules: Iterable[nn.Module]) -> None:
        """Have modules in memory from now on.

        Raises:
            CheckpointError: one cannot be read.
        """
        if self.weights is not None:
            self.weights.load(self.weights.under(*{self._paths[id(module)] for module in modules}))

    def require_around(self, stack: str, owner: nn.Module | None = None, *, skip_missing: bool = False) -> None:
        """Have all but a stack of blocks in memory from now on, of the model or of a part of it.

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
        """Let a forward run on noise where nothing is in memory, to see what goes where."""
        return nullcontext() if self.weights is None else self.weights.noise()

    def visited(self, module: nn.Module) -> AbstractContextManager[None]:
        """Have a module in memory while this is open, and no longer if it was not before."""
        return nullcontext() if self.weights is None else self.weights.visited(self._paths[id(module)])

    @contextmanager
    def held(self, module: nn.Module, place: Place | None) -> Iterator[torch.device | None]:
        """Have a module in memory while it runs, and afterwards if there is room; yield its device if it has a place.

        Raises:
            CheckpointError: it cannot be read.
            FusionError: it is larger than all the room there is.
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
