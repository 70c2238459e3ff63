"""A model as a source of blocks: any of them run alone, in the context that the model itself would give it."""

from __future__ import annotations

import copy
import inspect
import threading
from contextlib import contextmanager
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

from mol.core.blocks.causal import prepare
from mol.core.blocks.dispatch import intercepted, run_block, twin
from mol.core.blocks.driver import REFUSALS, Driver, Masks
from mol.core.blocks.gaps import keeps_gaps
from mol.core.blocks.inputs import CACHE_NAMES, Tokens
from mol.core.blocks.lengths import Limit, forget_lengths, has_turns
from mol.core.blocks.probes import (
    CacheWay,
    find_cache_way,
    has_nan,
    host_takes_pieces,
    is_causal,
    keeps_cache,
    kind_of,
    minds_padding,
    sees_content,
    takes_pieces,
    with_cache,
)
from mol.core.blocks.residence import Residence
from mol.core.blocks.stacks import choose_stack
from mol.core.cache import ExpertCache
from mol.errors import MolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from mol.core.blocks.calls import Arguments
    from mol.core.blocks.placement import Memory, Place
    from mol.core.blocks.prelude import BlockCalls, Carries
    from mol.core.models.weights import ModelWeights
    from mol.core.reports.notes import Note
    from mol.io.checkpoint import Checkpoint

__all__ = ["Source", "Tokens"]


class Source:
    """A frozen model whose blocks are run alone.

    Attributes:
        name: what messages call it.
        model: a twin of the model: its own modules over the same weights.
        stack: path of the list of blocks.
        blocks: the list.
        driver: the part of the model that calls them, and how.
        owner: that part.
        calls: its blocks, as its forward calls them.
        layout: how its hidden states lie.
        width: D, the width of its hidden states.
        weights: of a model that was built without them, else None.
        places: where blocks go, by their numbers, if not where the model is.
        revision: the commit that it was taken from, None for a directory.
        checkpoint: its files, None of a model that was not loaded here.
        made_causal: whether that took other masks than its own.
        notes: what was said of its blocks when they were put beside a host.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        *,
        stack: str | None = None,
        causal: bool = True,
        weights: ModelWeights | None = None,
        memory: Memory | None = None,
    ) -> None:
        """Find a model's blocks and trace them.

        Args:
            model: the model, with weights; it is not changed.
            name: what messages call it.
            stack: path of its list of blocks, or a part of it, where it has several.
            causal: make its masks causal if its blocks look ahead.
            weights: of a model that was built without them; blocks are then loaded when they first run.
            memory: the room that its blocks share with others; they stay once they are loaded if None.

        Raises:
            ArchitectureError: it has no stack of blocks that can be run alone; the message says why.
        """
        self.name = name
        self.model = twin(model) if weights is None else model
        self.model.train(mode=False)
        self.model.requires_grad_(requires_grad=False)
        self.weights = weights
        self._residence = Residence(self.model, weights, memory)
        self.places: Mapping[int, Place] = {}
        self.revision: str | None = None
        self.checkpoint: Checkpoint | None = None
        found = choose_stack(self.model, name, stack)
        self.blocks = list(found.blocks)
        self.stack = found.path
        self._found = found
        self._may_change = causal
        # Held while something is tried out: threads that want to know of it wait. Blocks run without it.
        self._trying = threading.RLock()
        self._visits = threading.local()
        self.made_causal = False
        self.notes: list[Note] = []
        self._kinds: list[object] = []
        self._probed: dict[tuple[object, ...], bool] = {}
        self._all_causal: bool | None = None
        self._empty_cache: ExpertCache | None = None
        self._adopt(self._drive("own"))

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
        """Where the model is, and its blocks but for those with a place of their own."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def causal(self) -> bool:
        """Whether no output of a block depends on later tokens; probed once, on one block of each kind."""
        with self._trying:
            if self._all_causal is None:
                for index in range(len(self)):
                    with self._visited():
                        self.is_causal(index)
                self._all_causal = self.known_causal
            return bool(self._all_causal)

    @property
    def known_causal(self) -> bool | None:
        """What is known of `causal`, None if nobody asked of any block."""
        found = [said for (what, *_), said in list(self._probed.items()) if what == "causal"]
        return all(found) if found else None

    def block_path(self, index: int) -> str:
        """Return the path of a block in the model."""
        return self._residence.path_of(self.calls.forms[index].block)

    @property
    def uses_more_than_blocks(self) -> bool:
        """Whether weights outside of its list of blocks were loaded, because its blocks are handed what they make."""
        return self.weights is not None and bool(self.weights.loaded & self.weights.outside(self.stack))

    def require(self, indices: Iterable[int]) -> None:
        """Have blocks in memory from now on.

        Raises:
            CheckpointError: one cannot be read.
        """
        self._residence.require(self.calls.forms[index].block for index in indices)

    def require_rest(self, *, skip_missing: bool = False) -> None:
        """Have all that is not a block in memory from now on: embeddings, norms, head.

        Args:
            skip_missing: do without what the files lack, such as a pooler.

        Raises:
            CheckpointError: something cannot be read.
        """
        self._residence.require_around(self.stack, skip_missing=skip_missing)

    def apply(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Move or cast the model, as `nn.Module.to` does."""
        self._residence.apply(fn)

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """Let the model's own forward run, with blocks in memory that are not for as long as each runs."""

        def visit(block: nn.Module, call: Arguments) -> Any:  # noqa: ANN401 - as the block returns it
            with self._residence.visited(block):
                return run_block(block, call)

        with intercepted(self.blocks, visit):
            yield

    def new_cache(self) -> ExpertCache:
        """Return an empty cache in the form that its blocks know."""
        # A config is slow to read, and decoding asks for a cache at every token.
        if self._empty_cache is None:
            self._empty_cache = ExpertCache(self.owner.config)
        return copy.deepcopy(self._empty_cache)

    def context(self, tokens: Tokens, cache: ExpertCache | None = None) -> list[Arguments]:
        """Run the prelude: what each block is handed for these tokens.

        Args:
            tokens: with a cache only the new ones, under the mask of all.
            cache: tells how many tokens were before; its contents do not matter.

        Raises:
            MolError: the model cannot take so many tokens.
        """
        device = self.device
        if tokens.device != device:
            mask, positions = tokens.mask.to(device), tokens.positions.to(device)
            tokens = tokens._replace(mask=mask, positions=positions, device=device)
        try:
            if self.turns:
                forget_lengths(self.driver)
            return self.driver.context(tokens, cache)
        except (IndexError, RuntimeError) as error:
            total = tokens.mask.shape[1]
            most = getattr(self.owner.config, "max_position_embeddings", None)
            if most is None or total <= most:
                raise
            raise MolError(
                f"{self.name} has positions for {most} tokens, and {total} were given; shorten the text, or leave its "
                "blocks out"
            ) from error

    def run(
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
            cache: of this expert; takes the place of the one in the context.
            live: carries between blocks of one forward, see `BlockCalls.run`.

        Returns:
            (B, T, D).
        """
        if cache is not None:
            context = [*context[:index], with_cache(context[index], cache), *context[index + 1 :]]
        weight = next(self.model.parameters())
        given = hidden.to(weight.device, weight.dtype)
        return self.driver.run(index, given, context, live).to(hidden.device, hidden.dtype)

    def token_inputs(
        self, model: nn.Module, input_ids: torch.Tensor, mask: torch.Tensor, cache: ExpertCache | None = None
    ) -> dict[str, Any]:
        """Give the inputs of a real forward of the model, or of a part of it that drives the blocks.

        Args:
            model: takes them.
            input_ids: the new tokens (B, T).
            mask: (B, P + T) over all tokens so far.
            cache: the model's own.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        # Where nothing is written, positions are the model's own: those of RoBERTa, say, start at 2.
        if self.causal and self.takes(model, "position_ids"):
            inputs["position_ids"] = Tokens.of(mask, input_ids.shape[1], self.dtype).positions
        if self.takes(model, "use_cache"):
            inputs["use_cache"] = cache is not None
        name = next((name for name in CACHE_NAMES if self.takes(model, name)), None)
        if cache is not None and name is not None:
            inputs[name] = cache
        return inputs

    def cached_inputs(
        self, input_ids: torch.Tensor, mask: torch.Tensor, cache: ExpertCache, way: CacheWay
    ) -> dict[str, Any]:
        """Give the inputs of a real forward of the model that goes on from a cache.

        Args:
            input_ids: the new tokens (B, T).
            mask: (B, P + T) over all tokens so far.
            cache: the model's own, of P tokens.
            way: which mask the model wants beside it.
        """
        inputs = self.token_inputs(self.model, input_ids, mask, cache)
        if way == "new":
            inputs["attention_mask"] = mask[:, mask.shape[1] - input_ids.shape[1] :]
        return inputs

    @cached_property
    def cache_way(self) -> CacheWay | None:
        """How the model's own forward goes on from a cache; None if it cannot. Tried out once."""
        return find_cache_way(self)

    @cached_property
    def takes_pieces(self) -> bool:
        """Whether the model's own forward goes on from a cache with several tokens at a time. Tried out once."""
        return self.cache_way is not None and host_takes_pieces(self, self.cache_way)

    @staticmethod
    def takes(model: nn.Module, name: str) -> bool:
        """Tell whether a model's forward has an argument of this name."""
        # A class can be hashed, whatever torch says of its instances.
        return name in _arguments_of(type(model))  # type: ignore[arg-type]

    def has_native_cache(self, index: int) -> bool:
        """Tell whether a block alone, fed bit by bit with a cache, does what it does on the whole; probed once."""
        return self._once("cache", index, lambda: self.is_causal(index) and keeps_cache(self.driver, index))

    def block_takes_pieces(self, index: int) -> bool:
        """Tell whether a block that has a native cache goes on from it with several tokens at a time; probed once."""
        return self._once("pieces", index, lambda: takes_pieces(self.driver, index))

    def keeps_gaps(self, index: int) -> bool:
        """Tell whether a block that has a native cache does with gaps in it what it does on each row; probed once."""
        return self._once("gaps", index, lambda: keeps_gaps(self, index))

    def known_native_cache(self, index: int) -> bool | None:
        """Return what `has_native_cache` said of a block, None if nobody asked."""
        return self._probed.get(("cache", self._kind_of(index))) if self._probed else None

    def is_causal(self, index: int) -> bool:
        """Tell whether one block's outputs depend on no later token; probed once for each kind of block.

        The first that looks ahead has the masks of the model changed, where that was asked for and helps.
        """

        def looks_back() -> bool:
            found = is_causal(self.driver, index)
            if found or not self._may_change:
                return found
            self._may_change = False
            self.made_causal = self._make_causal(index)
            return self.made_causal

        return self._once("causal", index, looks_back)

    @cached_property
    def content_dependent(self) -> bool:
        """Whether its model hands blocks more of its input than hidden states.

        Beside a host such blocks are handed what a blank input gives: per-layer embeddings of one and the same token
        (Gemma 3n), say, or a first hidden state of zeros (Zamba).
        """
        return sees_content(self.driver)

    @cached_property
    def limit(self) -> Limit:
        """For how many tokens it is made."""
        return Limit.of(self.owner)

    @cached_property
    def turns(self) -> bool:
        """Whether the length of a text changes what blocks are handed for the tokens before, see `has_turns`."""
        return has_turns(self.driver)

    def minds_padding(self, index: int, *, before: bool) -> bool:
        """Tell whether padding before tokens, or else behind them, changes what a block makes of them; probed once.

        To blocks that are handed no mask padding is as good as text: those of a ViT, say.
        """
        what = "padding before" if before else "padding behind"
        return self._once(what, index, lambda: minds_padding(self.driver, index, before=before))

    def _once(self, what: str, index: int, probe: Callable[[], bool]) -> bool:
        """Try something out on the first block of each kind, and remember it for the others."""
        with self._trying:
            said = self._probed.get((what, self._kind_of(index)))
            if said is None:
                said = probe()
                self._probed[what, self._kind_of(index)] = said  # a probe for causality may change the kinds
            return said

    def _adopt(self, driver: Driver) -> None:
        driver.hold = partial(self._held, calls=driver.calls)
        self.driver = driver
        # What was found out under other masks does not hold any more.
        self._kinds.clear()
        self._probed.clear()
        self._all_causal = None
        self.owner, self.calls, self.layout, self.width = driver.owner, driver.calls, driver.layout, driver.width
        self._empty_cache = None

    def _drive(self, masks: Masks) -> Driver:
        """Trace the blocks, with noise for weights where none are loaded, and load what their contexts need."""
        with self._residence.noise():
            driver = Driver(self._found, self.name, masks)
        self._residence.require(driver.calls.forms[index].block for index in driver.calls.producers)
        if self.weights is not None and has_nan(driver):
            self._residence.require_around(self.stack, driver.owner)
        return driver

    def _make_causal(self, index: int) -> bool:
        """Look for masks under which a block does not look ahead; if there are none all stays as it was."""
        # A mask built for an image's patches fits no text, so attention's own flags come first there.
        ways: tuple[Masks, ...] = (
            ("flags", "causal", "handed") if self.driver.inputs.way.is_signal else ("causal", "handed")
        )
        prepared = prepare(self.model)
        for masks in ways:
            try:
                driver = self._drive(masks)
                driver.hold = partial(self._held, calls=driver.calls)
                with self._visited():
                    causal = is_causal(driver, index)
            except REFUSALS:
                continue  # it takes no such mask
            if causal:
                self._adopt(driver)
                return True
        prepared.undo()
        return False

    def _kind_of(self, index: int) -> object:
        """Return what blocks share that do the same with tokens: class, settings, shapes, and what they are handed."""
        if not self._kinds:
            context = self.driver.context(self.driver.random_hidden(6)[1])
            self._kinds = [kind_of(form, call) for form, call in zip(self.calls.forms, context, strict=True)]
        return self._kinds[index]

    def _held(self, index: int, calls: BlockCalls) -> AbstractContextManager[torch.device | None]:
        """Have a block in memory while it runs, and afterwards if there is room; not afterwards while it is visited."""
        block = calls.forms[index].block
        if getattr(self._visits, "open", False):
            return self._residence.visited(block)
        return self._residence.held(block, self.places.get(index))

    @contextmanager
    def _visited(self) -> Iterator[None]:
        """Have blocks in memory for as long as each runs in this thread, and no longer if they were not before."""
        before, self._visits.open = getattr(self._visits, "open", False), True
        try:
            yield
        finally:
            self._visits.open = before


@cache
def _arguments_of(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)
