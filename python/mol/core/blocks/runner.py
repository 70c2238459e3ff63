"""BlockRunner: runs any block of a model alone, in the context that the model itself would give it."""

from __future__ import annotations

import copy
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from mol.core.blocks.dispatch import call_block, intercepted, twin
from mol.core.blocks.driver import Driver, Masks
from mol.core.blocks.lengths import forget_lengths, has_turns
from mol.core.blocks.prelude import with_cache
from mol.core.blocks.residence import Residence
from mol.core.blocks.stacks import choose_stack
from mol.core.cache import ExpertCache
from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from mol.core.blocks.calls import Arguments
    from mol.core.blocks.inputs import Tokens
    from mol.core.blocks.placement import Memory, Place
    from mol.core.blocks.prelude import BlockCalls, Carries
    from mol.core.models.weights import ModelWeights


class BlockRunner:
    """A frozen model whose blocks are run alone.

    Attributes:
        name: the model's name in messages.
        model: a twin of the model: modules of its own over the same weights.
        stack: path of the list of blocks.
        blocks: the list.
        driver: the part of the model that calls them, and how.
        owner: that part.
        calls: its blocks, as its forward calls them.
        layout: the order of axes in its hidden states.
        width: D, the width of its hidden states.
        weights: of a model that was built without them, else None.
        places: device of each block by its number, where that is not the model's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        *,
        stack: str | None = None,
        weights: ModelWeights | None = None,
        memory: Memory | None = None,
    ) -> None:
        """Find a model's blocks and trace them.

        Args:
            model: the model, with weights; it is not changed.
            name: its name in messages.
            stack: path of its list of blocks, or a part of it, where it has several.
            weights: of a model that was built without them; blocks are then loaded when they first run.
            memory: the memory that its blocks share with others; they stay once they are loaded if None.

        Raises:
            ArchitectureError: it has no stack of blocks that can be run alone; the message says why.
        """
        self.name = name
        self.model = twin(model) if weights is None else model
        self.model.train(mode=False)
        self.model.requires_grad_(requires_grad=False)
        self.weights = weights
        self.places: Mapping[int, Place] = {}
        self._residence = Residence(self.model, weights, memory)
        self._found = choose_stack(self.model, name, stack)
        self.blocks = list(self._found.blocks)
        self.stack = self._found.path
        self._brief = threading.local()
        self.use(self.trace("own"))

    def __len__(self) -> int:
        """Count its blocks, as its forward calls them."""
        return len(self.calls)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its weights, and of the hidden states that its blocks take."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Device of the model, and of its blocks unless `places` names another."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def block_path(self, index: int) -> str:
        """Return the path of a block in the model."""
        return self._residence.path_of(self.calls.forms[index].block)

    @property
    def uses_more_than_blocks(self) -> bool:
        """Whether weights outside of its list of blocks were loaded, because blocks are handed what those compute."""
        return self.weights is not None and bool(self.weights.loaded & self.weights.outside(self.stack))

    def require(self, indices: Iterable[int]) -> None:
        """Load blocks, and keep them in memory.

        Raises:
            CheckpointError: one cannot be read.
        """
        if self.weights is not None:
            self._residence.require(self.calls.forms[index].block for index in indices)

    def require_rest(self, *, skip_missing: bool = False) -> None:
        """Load all that is not a block, and keep it in memory: embeddings, norms, head.

        Args:
            skip_missing: do without what the files lack, such as a pooler.

        Raises:
            CheckpointError: something cannot be read.
        """
        self._residence.require_around(self.stack, skip_missing=skip_missing)

    def apply(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Move or cast the model, as `nn.Module.to` does."""
        self._residence.apply(fn)

    def trace(self, masks: Masks) -> Driver:
        """Trace the blocks, with noise for weights that are not loaded, and load what their contexts need.

        Raises:
            ArchitectureError: the blocks cannot be run alone.
        """
        with self._residence.noise():
            driver = Driver(self._found, self.name, masks)
        driver.hold = partial(self._hold, calls=driver.calls)
        self._residence.require(driver.calls.forms[index].block for index in driver.calls.producers)
        if self.weights is not None and driver.hands_nan():
            self._residence.require_around(self.stack, driver.owner)
        return driver

    def use(self, driver: Driver) -> None:
        """Run the blocks by this trace of them from now on."""
        self.driver = driver
        self.owner, self.calls, self.layout, self.width = driver.owner, driver.calls, driver.layout, driver.width
        self._empty_cache: ExpertCache | None = None
        self._has_turns: bool | None = None

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """Let the model's own forward run, with blocks that are not in memory loaded only while each runs."""

        def visit(block: nn.Module, call: Arguments) -> Any:  # noqa: ANN401 - as the block returns it
            with self._residence.visited(block):
                return call_block(block, call)

        with intercepted(self.blocks, visit):
            yield

    @contextmanager
    def briefly(self) -> Iterator[None]:
        """Keep blocks that this thread runs in memory only while each runs, unless they were there before."""
        before, self._brief.on = getattr(self._brief, "on", False), True
        try:
            yield
        finally:
            self._brief.on = before

    def new_cache(self) -> ExpertCache:
        """Return an empty cache of the kind that its blocks take."""
        # A config is slow to read, and decoding needs a cache at every token.
        if self._empty_cache is None:
            self._empty_cache = ExpertCache(self.owner.config)
        return copy.deepcopy(self._empty_cache)

    def has_turns(self) -> bool:
        """Return whether the length of a text changes what blocks are handed for earlier tokens; probed once."""
        if self._has_turns is None:
            self._has_turns = has_turns(self.driver)
        return self._has_turns

    def context(self, tokens: Tokens, cache: ExpertCache | None = None) -> list[Arguments]:
        """Run the prelude, and return what each block is handed for these tokens.

        Args:
            tokens: with a cache only the new ones, under the mask of all.
            cache: says how many tokens came before; its contents do not matter.

        Raises:
            FusionError: the model cannot take so many tokens.
        """
        device = self.device
        if tokens.device != device:
            mask, positions = tokens.mask.to(device), tokens.positions.to(device)
            tokens = tokens._replace(mask=mask, positions=positions, device=device)
        try:
            if self.has_turns():
                forget_lengths(self.driver)
            return self.driver.context(tokens, cache)
        except (IndexError, RuntimeError) as error:
            total = tokens.mask.shape[1]
            most = getattr(self.owner.config, "max_position_embeddings", None)
            if most is None or total <= most:
                raise
            raise FusionError(
                f"{self.name} has positions for {most} tokens, and {total} were given; shorten the text, or leave its "
                "blocks out"
            ) from error

    def run_block(
        self,
        index: int,
        hidden: torch.Tensor,
        context: list[Arguments],
        *,
        cache: ExpertCache | None = None,
        live: Carries | None = None,
    ) -> torch.Tensor:
        """Run one block on hidden states (B, T, D); gradients flow to them and to nothing else.

        Args:
            index: which block.
            hidden: (B, T, D).
            context: from `context`, for the same tokens.
            cache: of this expert; replaces the one in the context.
            live: carries between blocks of one forward, see `BlockCalls.run_call`.

        Returns:
            (B, T, D).
        """
        if cache is not None:
            context = [*context[:index], with_cache(context[index], cache), *context[index + 1 :]]
        weight = next(self.model.parameters())
        given = hidden.to(weight.device, weight.dtype)
        return self.driver.run_in_layout(index, given, context, live).to(hidden.device, hidden.dtype)

    def _hold(self, index: int, calls: BlockCalls) -> AbstractContextManager[torch.device | None]:
        """Keep a block in memory while it runs, and afterwards if there is room and this thread does not run briefly.

        Yields:
            The block's device where it is not the model's.
        """
        block = calls.forms[index].block
        if getattr(self._brief, "on", False):
            return self._residence.visited(block)
        return self._residence.held(block, self.places.get(index))
