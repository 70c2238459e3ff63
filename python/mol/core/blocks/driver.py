"""Driver: the part of a model that calls a stack of blocks, and the contexts that it gives them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch.nn import functional

from mol.core.blocks.calls import Arguments, argument, tensors
from mol.core.blocks.causal import causal_masks, made_causal
from mol.core.blocks.inputs import Inputs, Tokens
from mol.core.blocks.layout import Layout
from mol.core.blocks.placement import to_device
from mol.core.blocks.prelude import BlockCalls, Carries
from mol.errors import ArchitectureError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mol.core.blocks.stacks import FoundStack
    from mol.core.cache import ExpertCache

Masks = Literal["own", "flags", "causal", "handed"]
"""How attention is masked: as the model does it; by its `is_causal` flags; by causal masks that replace its own; by its
own masks, made causal in each block's call."""

REFUSALS: Final = (
    ArchitectureError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""The exceptions that a model's code raises for an input that it does not accept."""
Hold = Callable[[int], AbstractContextManager["torch.device | None"]]
"""Context manager that loads a block and yields its device if it differs from the model's."""

_BATCH, _LENGTH = 3, 5
"""Sizes of the traced forward, different so that axes can be distinguished."""
_LARGEST: Final = 1 << 12


class Driver:
    """A stack of blocks with the part of its model that calls them.

    Attributes:
        owner: that part.
        inputs: how it is driven.
        calls: the blocks, as it calls them.
        layout: how its hidden states lie.
        hold: loads a block while it runs.
        is_fixed: whether blocks run only at the length that their owner gives the hidden states: an image's patches, or
            tokens padded to whole windows. Shorter texts are padded to that length, and the result is cut again.
    """

    def __init__(self, found: FoundStack, name: str, masks: Masks = "own") -> None:
        """Trace the innermost part around the blocks that runs from embeddings, tokens, an image or a sound.

        Args:
            found: the stack.
            name: the model's name in messages.
            masks: how attention is masked; for any but its own the model must be prepared by `prepare`.

        Raises:
            ArchitectureError: no part runs, or the blocks cannot be run alone.
        """
        self._name = name
        self._masks: Masks = masks
        self._scales: dict[int, int] = {}
        self.hold: Hold = _stay
        reasons = []
        for path, owner in found.owners:
            for inputs in Inputs.of(owner):
                try:
                    self._trace(found, owner, inputs)
                except REFUSALS as error:
                    # Reported if nothing works.
                    said = " ".join(str(error).split())
                    reasons.append(f"{path or type(owner).__name__} from {inputs.way}: {type(error).__name__}: {said}")
                else:
                    return
        if not reasons:
            reasons = [f"{type(owner).__name__} takes no input that can be made up" for _, owner in found.owners[:1]]
        raise ArchitectureError.listing(f"{name}: its blocks `{found.path}` cannot be run alone", reasons)

    def __len__(self) -> int:
        """Count the blocks, as their owner calls them."""
        return len(self.calls)

    @property
    def width(self) -> int:
        """D, the width of the hidden states."""
        return self.layout.width

    def context(
        self, tokens: Tokens, cache: ExpertCache | None = None, content: torch.Generator | None = None
    ) -> list[Arguments]:
        """Run the prelude, and return what each block is handed for these tokens.

        Args:
            tokens: with a cache only the new ones, under the mask of all.
            cache: says how many tokens came before; its contents do not matter.
            content: draws the values of the inputs; they are blank if None.

        Raises:
            ArchitectureError: the blocks take fewer tokens at a time.
        """
        handed = self._capture(self.inputs_for(tokens, cache, content))
        if self._masks != "handed":
            return handed
        return [self.made(index, call) for index, call in enumerate(handed)]

    def inputs_for(
        self, tokens: Tokens, cache: ExpertCache | None = None, content: torch.Generator | None = None
    ) -> dict[str, Any]:
        """Return inputs of the owner that give at least as many hidden states as there are tokens.

        Raises:
            ArchitectureError: none do.
        """
        scale = self._scale(tokens) if self.is_fixed and self.inputs.way.is_signal else 1
        return self.inputs.make(tokens, cache, content=content, scale=scale)

    def made(self, index: int, call: Arguments) -> Arguments:
        """Return the call of a block with the requested masks, if it is handed any."""
        return made_causal(self.calls.forms[index].block, call) if self._masks == "handed" else call

    def run_in_layout(
        self, index: int, hidden: torch.Tensor, context: list[Arguments], live: Carries | None = None
    ) -> torch.Tensor:
        """Run one block, in its model's layout, on hidden states (B, T, D) and a context from `context`.

        Raises:
            ArchitectureError: the context is of fewer tokens.
        """
        batch, length, _ = hidden.shape
        if self.is_fixed:
            room = self._room(index, context, batch)
            if room < length:
                raise ArchitectureError(f"{self._name}: its blocks take {room} tokens at a time, {length} were given")
            hidden = functional.pad(hidden, (0, 0, 0, room - length))
        call = context[index]
        with self.hold(index) as device:
            if device is not None:
                call, hidden = to_device(call, device), hidden.to(device)
            result = self.calls.run_call(index, self.layout.to_block(hidden), call, live)
        return self.layout.from_block(result, batch)[:, :length]

    def random_hidden(self, length: int) -> tuple[torch.Tensor, Tokens]:
        """Return random hidden states (2, T, D), the same each time, and their tokens."""
        weight = next(self.owner.parameters())
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(2, length, self.width, generator=generator).to(weight.device, weight.dtype)
        mask = torch.ones(2, length, dtype=torch.long, device=weight.device)
        return hidden, Tokens.of(mask, length, weight.dtype)

    def hands_nan(self) -> bool:
        """Return whether blocks are handed NaN next to hidden states: the traces of weights that are not loaded."""
        context = self.context(self.random_hidden(6)[1])
        given = [form.with_hidden(call, None) for form, call in zip(self.calls.forms, context, strict=True)]
        return any(bool(tensor.isnan().any()) for tensor in tensors(given))

    def _trace(self, found: FoundStack, owner: PreTrainedModel, inputs: Inputs) -> None:
        self.owner, self.inputs, self.is_fixed = owner, inputs, False
        weight = next(owner.parameters())
        mask = torch.ones(_BATCH, _LENGTH, dtype=torch.long, device=weight.device)
        tokens = Tokens.of(mask, _LENGTH, weight.dtype)
        made = self.inputs_for(tokens)
        with self.masking():
            self.calls = BlockCalls(list(found.blocks), lambda: owner(**made), f"{self._name}, `{found.path}`")
        shape = self.calls.shape
        if not inputs.way.is_signal and (_LENGTH in shape or shape[0] == _BATCH * _LENGTH):
            self.layout = Layout(shape, _BATCH, _LENGTH, self._name)
            return
        widths = {int(parameter.shape[0]) for parameter in found.blocks.parameters() if parameter.dim() == 1}
        self.layout = Layout.of_signal(shape, _BATCH, widths, self._name)
        if inputs.way.is_signal:
            self.is_fixed = self.layout.is_grid or not self._runs_at_any_length()
        else:
            self.is_fixed = True
            self._check_padding(tokens)

    def _runs_at_any_length(self) -> bool:
        # Few, and another number than in the traced forward.
        length = next(count for count in (7, 8) if count != self.layout.length(self.calls.shape, _BATCH))
        hidden, tokens = self.random_hidden(length)
        try:
            context, live = self.context(tokens), Carries()
            with torch.no_grad():
                for index in range(len(self)):
                    hidden = self.run_in_layout(index, hidden, context, live)
        except REFUSALS:
            return False
        return hidden.shape[1] == tokens.length

    def _check_padding(self, tokens: Tokens) -> None:
        """Check that the hidden states of the tokens come first, and padding after them."""
        blank, drawn = (self._first_hidden(tokens, content) for content in (None, torch.Generator().manual_seed(0)))
        moved = (blank != drawn).any(-1).any(0).nonzero().flatten().tolist()
        if moved != list(range(tokens.length)):
            raise ArchitectureError(
                f"{self._name}: {blank.shape[1]} hidden states for {tokens.length} tokens, and they are not the first"
            )

    def _first_hidden(self, tokens: Tokens, content: torch.Generator | None) -> torch.Tensor:
        call = self.context(tokens, content=content)[0]
        hidden: torch.Tensor = argument(call, self.calls.forms[0].hidden_in)
        return self.layout.from_block(hidden, tokens.mask.shape[0])

    def _scale(self, tokens: Tokens) -> int:
        """Return a size of signal that is enough for so many tokens."""
        if tokens.length not in self._scales:
            scale, before = 1, 0
            while True:
                inputs = self.inputs.make(tokens, scale=scale)
                room = self._room(0, self._capture(inputs), tokens.mask.shape[0])
                if room >= tokens.length:
                    break
                if room <= before or scale >= _LARGEST or self.layout.is_grid:
                    raise ArchitectureError(
                        f"{self._name}: its blocks take {room} tokens at a time, {tokens.length} were given"
                    )
                scale, before = scale * 2, room
            self._scales[tokens.length] = scale
        return self._scales[tokens.length]

    def _capture(self, inputs: dict[str, Any]) -> list[Arguments]:
        with torch.no_grad(), self.masking():
            return self.calls.capture(lambda: self.owner(**inputs))[0]

    def _room(self, index: int, context: list[Arguments], batch: int) -> int:
        hidden = argument(context[index], self.calls.forms[index].hidden_in)
        return self.layout.length(hidden.shape, batch)

    def masking(self) -> AbstractContextManager[None]:
        """Return a context in which the model makes the requested masks."""
        return causal_masks() if self._masks == "causal" else nullcontext()


def _stay(_index: int) -> AbstractContextManager[None]:
    return nullcontext()
