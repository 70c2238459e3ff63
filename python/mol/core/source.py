"""A model as a source of blocks: any of them run alone, in the context that the model itself would give it."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache

from mol.core.cache import CACHE_NAME, ExpertCache
from mol.core.calls import Arguments, items, with_argument
from mol.core.causal import causal_masks, prepare
from mol.core.dispatch import twin
from mol.core.layout import Layout
from mol.core.prelude import BlockCalls, Carries
from mol.core.stacks import choose_stack
from mol.errors import ArchitectureError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH, _LENGTH = 3, 5
"""Sizes of the traced forward, unlike each other so that axes can be told apart."""
_CACHE_NAMES: Final = (CACHE_NAME, "cache_params")
_EXACT = 1e-5


class Tokens(NamedTuple):
    """What a forward is about.

    Attributes:
        mask: attention mask over all tokens so far, (B, P + T), integers.
        positions: positions of the new tokens, (B, T).
        length: T.
        device: of the hidden states.
        dtype: of the hidden states.
    """

    mask: torch.Tensor
    positions: torch.Tensor
    length: int
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, mask: torch.Tensor, length: int, dtype: torch.dtype) -> Tokens:
        """Describe the last `length` tokens under a mask; positions count unmasked tokens, as `generate` does."""
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, mask.shape[1] - length :]
        return cls(mask, positions, length, mask.device, dtype)


class Source:
    """A frozen model whose blocks are run alone.

    Attributes:
        name: what messages call it.
        model: a twin of the model: its own modules over the same weights.
        stack: path of the list of blocks.
        blocks: the list.
        calls: its blocks, as its forward calls them.
        layout: how its hidden states lie.
        width: D, the width of its hidden states.
        causal: whether no output of a block depends on later tokens.
        made_causal: whether that took causal masks in place of its own.
    """

    def __init__(self, model: PreTrainedModel, name: str, *, stack: str | None = None, causal: bool = True) -> None:
        """Find a model's blocks and trace them.

        Args:
            model: the model, with weights; it is not changed.
            name: what messages call it.
            stack: path of its list of blocks, or a part of it, where it has several.
            causal: make its masks causal if its blocks look ahead.

        Raises:
            ArchitectureError: it has no stack of blocks that can be run alone; the message says why.
        """
        self.name = name
        self.model = twin(model)
        self.model.train(mode=False)
        self.model.requires_grad_(requires_grad=False)
        found = choose_stack(self.model, name, stack)
        self.blocks = list(found.blocks)
        self.stack = found.path
        self._wants_causal = False
        self._trace(found.owners)
        self.causal = self._probe(range(len(self.calls)))
        self.made_causal = False
        if causal and not self.causal:
            prepare(self.model)
            self._wants_causal = True
            self._trace(found.owners)
            self.causal = self.made_causal = self._probe(range(len(self.calls)))
        self._native_cache: dict[int, bool] = {}

    def __len__(self) -> int:
        """Count its blocks, as its forward calls them."""
        return len(self.calls)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its weights, and of the hidden states that its blocks take."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    def new_cache(self) -> ExpertCache:
        """Return an empty cache in the form that its blocks know."""
        return ExpertCache(self._owner.config)

    def context(self, tokens: Tokens, cache: ExpertCache | None = None) -> list[Arguments]:
        """Run the prelude: what each block is handed for these tokens.

        Args:
            tokens: with a cache only the new ones, under the mask of all.
            cache: tells how many tokens were before; its contents do not matter.
        """
        inputs = self._inputs(tokens, cache)
        with torch.no_grad(), self._masks():
            return self.calls.capture(lambda: self._owner(**inputs))[0]

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
        call = context[index]
        if cache is not None:
            for slot, value in items(call):
                if isinstance(value, Cache):
                    call = with_argument(call, slot, cache)
        result = self.calls.run(index, self.layout.to_block(hidden), call, live)
        return self.layout.from_block(result, hidden.shape[0])

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
        if self.takes(model, "position_ids"):
            inputs["position_ids"] = Tokens.of(mask, input_ids.shape[1], self.dtype).positions
        if self.takes(model, "use_cache"):
            inputs["use_cache"] = cache is not None
        name = next((name for name in _CACHE_NAMES if self.takes(model, name)), None)
        if cache is not None and name is not None:
            inputs[name] = cache
        return inputs

    @staticmethod
    def takes(model: nn.Module, name: str) -> bool:
        """Tell whether a model's forward has an argument of this name."""
        return name in inspect.signature(model.forward).parameters

    def has_native_cache(self, index: int) -> bool:
        """Tell whether a block alone, fed bit by bit with a cache, does what it does on the whole; probed once."""
        if index not in self._native_cache:
            self._native_cache[index] = self._cache_name is not None and self.causal and self._probe_cache(index)
        return self._native_cache[index]

    def is_causal(self, index: int) -> bool:
        """Tell whether one block's outputs depend on no later token."""
        return self._probe([index])

    def _masks(self) -> AbstractContextManager[None]:
        # An image has as many tokens as patches, so a mask built for one fits no text; `is_causal` alone does it there.
        return causal_masks() if self._wants_causal and self._way != "pixel_values" else nullcontext()

    def _trace(self, owners: tuple[tuple[str, PreTrainedModel], ...]) -> None:
        """Trace with the innermost model around the blocks that runs from nothing but embeddings or tokens."""
        reasons = []
        for path, owner in owners:
            self._owner = owner
            self._parameters = inspect.signature(owner.forward).parameters
            self._cache_name = next((name for name in _CACHE_NAMES if name in self._parameters), None)
            for way in ("inputs_embeds", "input_ids", "pixel_values"):
                if way not in self._parameters:
                    continue
                self._way = way
                try:
                    self._trace_once()
                except (
                    ArchitectureError,
                    ValueError,
                    TypeError,
                    RuntimeError,
                    AttributeError,
                    KeyError,
                    IndexError,
                ) as error:
                    # Whatever a model's code says to an input it cannot take; all of it is told if nothing works.
                    reasons.append(f"{path or type(owner).__name__} from {way}: {type(error).__name__}: {error}")
                else:
                    return
        raise ArchitectureError.listing(f"{self.name}: its blocks `{self.stack}` cannot be run alone", reasons)

    def _trace_once(self) -> None:
        weight = next(self.model.parameters())
        mask = torch.ones(_BATCH, _LENGTH, dtype=torch.long, device=weight.device)
        inputs = self._inputs(Tokens.of(mask, _LENGTH, weight.dtype), None)
        with self._masks():
            self.calls = BlockCalls(self.blocks, lambda: self._owner(**inputs), f"{self.name}, `{self.stack}`")
        shape = self.calls.shape
        if self._way == "pixel_values":
            self.layout = Layout((_BATCH, _LENGTH, shape[-1]), _BATCH, _LENGTH, self.name)
        else:
            self.layout = Layout(shape, _BATCH, _LENGTH, self.name)
        self.width = self.layout.width

    def _inputs(self, tokens: Tokens, cache: ExpertCache | None) -> dict[str, Any]:
        """Give the model that drives the blocks inputs of the right sizes; what they hold does not reach a block."""
        batch = tokens.mask.shape[0]
        inputs: dict[str, Any] = {}
        if self._way == "inputs_embeds":
            width = self._embedding_width()
            inputs["inputs_embeds"] = torch.zeros(batch, tokens.length, width, device=tokens.device, dtype=tokens.dtype)
        elif self._way == "input_ids":
            inputs["input_ids"] = torch.ones(batch, tokens.length, device=tokens.device, dtype=torch.long)
        else:
            return {"pixel_values": self._blank_image(batch, tokens)}
        if "attention_mask" in self._parameters:
            inputs["attention_mask"] = tokens.mask
        if "position_ids" in self._parameters:
            inputs["position_ids"] = tokens.positions
        if "use_cache" in self._parameters:
            inputs["use_cache"] = cache is not None
        if cache is not None and self._cache_name is not None:
            inputs[self._cache_name] = cache
        return inputs

    def _embedding_width(self) -> int:
        embeddings = self._owner.get_input_embeddings()
        for parameter in embeddings.parameters():
            if parameter.dim() == 2:
                return int(parameter.shape[1])
        raise ArchitectureError(f"{self.name}: its input embeddings have no matrix, so their width is not known")

    def _blank_image(self, batch: int, tokens: Tokens) -> torch.Tensor:
        config = self._owner.config
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch, config.num_channels, height, width)
        return torch.zeros(shape, device=tokens.device, dtype=tokens.dtype)

    def _random_hidden(self, length: int) -> tuple[torch.Tensor, Tokens]:
        weight = next(self.model.parameters())
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(2, length, self.width, generator=generator).to(weight.device, weight.dtype)
        mask = torch.ones(2, length, dtype=torch.long, device=weight.device)
        return hidden, Tokens.of(mask, length, weight.dtype)

    def _probe(self, indices: range | list[int]) -> bool:
        """Change the last token at random (LayerNorm would hide a shift) and look at the outputs before it."""
        hidden, tokens = self._random_hidden(6)
        changed = hidden.clone()
        changed[:, -1] = hidden[:, 0].flip(-1) * 3
        context = self.context(tokens)
        with torch.no_grad():
            for index in indices:
                before, after = (self.run(index, h, context, live={})[:, :-1] for h in (hidden, changed))
                if not torch.allclose(before, after, rtol=0.0, atol=_EXACT):
                    return False
        return True

    def _probe_cache(self, index: int) -> bool:
        hidden, tokens = self._random_hidden(7)
        with torch.no_grad():
            whole = self.run(index, hidden, self.context(tokens), live={})
            cache, pieces = self.new_cache(), []
            for start, end in ((0, 4), (4, 5), (5, 6)):
                cache.seen = start
                piece = Tokens.of(tokens.mask[:, :end], end - start, tokens.dtype)
                try:
                    context = self.context(piece, cache)
                    pieces.append(self.run(index, hidden[:, start:end], context, cache=cache, live={}))
                except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError):
                    return False  # a block that fails alone with a cache is run without one
        scale = max(1.0, whole.abs().max().item())
        return torch.allclose(torch.cat(pieces, 1), whole[:, :6], rtol=0.0, atol=2e-4 * scale)
