"""Source: a model of a fusion, which runs its blocks alone and knows what was found out about them."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

from mol.core.blocks.causal import prepare
from mol.core.blocks.driver import REFUSALS
from mol.core.blocks.gaps import keeps_gaps
from mol.core.blocks.lengths import Limit
from mol.core.blocks.probes import (
    find_cache_mask,
    is_causal,
    keeps_cache,
    kind_of,
    minds_padding,
    model_takes_chunks,
    sees_content,
    takes_chunks,
)
from mol.core.blocks.runner import BlockRunner
from mol.core.linear import no_autocast

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from mol.core.blocks.driver import Driver, Masks
    from mol.core.blocks.inputs import CacheMask
    from mol.core.blocks.placement import Memory
    from mol.core.models.weights import ModelWeights
    from mol.io.checkpoint import Checkpoint


class Source(BlockRunner):
    """A model of a fusion: the runner of its blocks, and the answers to questions about them.

    Each question is answered by a probe, once for each kind of block, and changes nothing. `make_causal` changes masks.

    Attributes:
        revision: the commit that the model was taken from, None for a directory.
        checkpoint: its files, None for a model that was not loaded by mol.
        made_causal: whether its masks had to be replaced by causal ones.
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
        """Find a model's blocks and trace them; see `BlockRunner`.

        Raises:
            ArchitectureError: it has no stack of blocks that can be run alone; the message says why.
        """
        super().__init__(model, name, stack=stack, weights=weights, memory=memory)
        self.revision: str | None = None
        self.checkpoint: Checkpoint | None = None
        self.made_causal = False
        # Held during a probe: threads that need its answer wait for it. Blocks run without it.
        self._probing = threading.RLock()
        self._answers: dict[tuple[str, object], bool] = {}
        self._kinds: list[object] = []
        self._tried_causal = False
        self._all_causal: bool | None = None
        self._cache_mask: CacheMask | None = None
        self._knows_cache_mask = False

    def is_causal(self, index: int | None = None) -> bool:
        """Return whether no output of a block depends on later tokens, of all blocks if `index` is None."""
        if index is not None:
            return self._answer("causal", index, lambda: is_causal(self.driver, index))
        with self._probing:
            if self._all_causal is None:
                with self.briefly():
                    self._all_causal = all([self.is_causal(each) for each in range(len(self))])
            return self._all_causal

    def make_causal(self, index: int | None = None) -> bool:
        """Replace the model's masks by causal ones if a block attends to later tokens, all blocks if `index` is None.

        The first block that needs it decides for the model: masks are replaced if there are some under which that block
        is causal, and otherwise stay as they are for good.

        Returns:
            Whether the block, or all of them, are causal now.
        """
        if index is None:
            with self._probing, self.briefly():
                for each in range(len(self)):
                    self.make_causal(each)
            return self.is_causal()
        with self._probing:
            if self.is_causal(index) or self._tried_causal:
                return self.is_causal(index)
            self._tried_causal = True
            driver = self._causal_driver(index)
            if driver is None:
                return False
            self.use(driver)
            self.made_causal = True
            # What was found out under the other masks does not hold any more, but for what was just probed.
            self._kinds.clear()
            self._answers.clear()
            self._all_causal = None
            return self._answer("causal", index, lambda: True)

    @property
    def known_causal(self) -> bool | None:
        """The answer of `is_causal` for the blocks probed so far, None before the first."""
        found = [answer for (question, _), answer in list(self._answers.items()) if question == "causal"]
        return all(found) if found else None

    @cached_property
    def limit(self) -> Limit:
        """The number of tokens that the model is made for, read from its config and modules."""
        return Limit.of(self.owner)

    def has_native_cache(self, index: int) -> bool:
        """Return whether a block alone, fed token by token with a cache, computes what it does on the whole text."""
        return self._answer("cache", index, lambda: self.is_causal(index) and keeps_cache(self.driver, index))

    def known_native_cache(self, index: int) -> bool | None:
        """Return the answer of `has_native_cache` for a block, None if it was not probed yet."""
        return self._answers.get(("cache", self._kind_of(index))) if self._answers else None

    def block_takes_chunks(self, index: int) -> bool:
        """Return whether a block that has a native cache continues from it with several tokens at a time."""
        return self._answer("chunks", index, lambda: takes_chunks(self.driver, index))

    def keeps_gaps(self, index: int) -> bool:
        """Return whether a block that has a native cache computes with gaps in it what it does on each row alone."""
        return self._answer("gaps", index, lambda: keeps_gaps(self, index))

    def minds_padding(self, index: int, *, before: bool) -> bool:
        """Return whether padding before tokens, or else behind them, changes what a block computes for them.

        To blocks that are handed no mask padding is as good as text: those of a ViT, say.
        """
        question = "padding before" if before else "padding behind"
        return self._answer(question, index, lambda: minds_padding(self.driver, index, before=before))

    def sees_content(self) -> bool:
        """Return whether the model hands its blocks more of its input than hidden states.

        In a host such blocks are handed what a blank input gives: per-layer embeddings of one and the same token
        (Gemma 3n), say, or a first hidden state of zeros (Zamba).
        """
        return self._answer("content", 0, lambda: sees_content(self.driver))

    def cache_mask(self) -> CacheMask | None:
        """Return which mask the model's own forward takes next to a cache; None if it cannot continue from one.

        Only for a causal model.
        """
        with self._probing:
            if not self._knows_cache_mask:
                with no_autocast(self.device):
                    self._cache_mask, self._knows_cache_mask = find_cache_mask(self), True
            return self._cache_mask

    @property
    def content_dependent(self) -> bool:
        """The answer of `sees_content`, under the name that programs know it by."""
        return self.sees_content()

    @property
    def cache_way(self) -> CacheMask | None:
        """The answer of `cache_mask`, under the name that programs know it by."""
        return self.cache_mask()

    def takes_chunks(self) -> bool:
        """Return whether the model's own forward continues from a cache with several tokens at a time."""
        mask = self.cache_mask()
        return mask is not None and self._answer("model chunks", 0, lambda: model_takes_chunks(self, mask))

    def _answer(self, question: str, index: int, probe: Callable[[], bool]) -> bool:
        """Return what a probe finds on the first block of each kind, and remember it for the others."""
        with self._probing:
            key = question, self._kind_of(index)
            if key not in self._answers:
                # What autocast rounds to 16 bits differs by more than a probe allows.
                with no_autocast(self.device):
                    self._answers[key] = probe()
            return self._answers[key]

    def _kind_of(self, index: int) -> object:
        """Return what blocks that compute the same share: class, settings, shapes, and what they are handed."""
        if not self._kinds:
            context = self.driver.context(self.driver.random_hidden(6)[1])
            self._kinds = [kind_of(form, call) for form, call in zip(self.calls.forms, context, strict=True)]
        return self._kinds[index]

    def _causal_driver(self, index: int) -> Driver | None:
        """Trace the model with causal masks, until a block is causal; None, and all as before, if it never is."""
        # A mask built for an image's patches fits no text, so attention's own flags come first there.
        ways: tuple[Masks, ...] = (
            ("flags", "causal", "handed") if self.driver.inputs.way.is_signal else ("causal", "handed")
        )
        prepared = prepare(self.model)
        for masks in ways:
            try:
                driver = self.trace(masks)
                with self.briefly(), no_autocast(self.device):
                    causal = is_causal(driver, index)
            except REFUSALS:
                continue  # it takes no such mask
            if causal:
                return driver
        prepared.undo()
        return None
