"""Makes the blocks of an encoder causal: every mask that its model builds is replaced by a causal one."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from transformers import masking_utils

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from mol.core.blocks.calls import Arguments


class Prepared(NamedTuple):
    """The changes that `prepare` made in a model.

    Attributes:
        holders: modules and configs whose `is_causal` was False.
    """

    holders: list[object]

    def undo(self) -> None:
        """Restore the model."""
        for holder in self.holders:
            vars(holder)["is_causal"] = False


_enabled: ContextVar[bool] = ContextVar("mol_causal_masks", default=False)
_placing = threading.Lock()
_CAUSAL: Final = {
    "create_bidirectional_mask": masking_utils.create_causal_mask,
    "create_bidirectional_sliding_window_mask": masking_utils.create_sliding_window_causal_mask,
}


@contextmanager
def causal_masks() -> Iterator[None]:
    """Let prepared models build causal masks while the context is open, in this thread and context only."""
    token = _enabled.set(True)
    try:
        yield
    finally:
        _enabled.reset(token)


def prepare(model: nn.Module) -> Prepared:
    """Make a model's code check for `causal_masks` each time it builds a bidirectional mask.

    The factories are replaced in the files that define the model; outside of `causal_masks` they work as before.
    Attention that builds no mask but reads `is_causal` has that set, so pass a twin of the model.
    """
    files = {type(module).__module__ for module in model.modules()}
    with _placing:
        for file in sorted(name for name in files if name.startswith("transformers.")):
            namespace = vars(sys.modules[file])
            for name, causal in _CAUSAL.items():
                original = namespace.get(name)
                if original is getattr(masking_utils, name):
                    namespace[name] = _choosing(original, causal)
    prepared = Prepared([])
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            if holder is not None and vars(holder).get("is_causal") is False:
                vars(holder)["is_causal"] = True
                prepared.holders.append(holder)
    return prepared


def made_causal(block: nn.Module, call: Arguments) -> Arguments:
    """Return a block's call with its masks made causal, whether they are floats to add or 1 and 0.

    A mask is an argument with `mask` in its name, of (..., T, S) or (..., 1, S) and three or more axes.
    """
    bound = inspect.signature(type(block).forward).bind(block, *call[0], **call[1])
    names = [name for name, value in bound.arguments.items() if "mask" in name and _is_mask(value)]
    if not names:
        return call
    for name in names:
        bound.arguments[name] = _triangular(bound.arguments[name])
    return bound.args[1:], bound.kwargs


def _is_mask(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 2 and value.shape[-2] in (1, value.shape[-1])


def _triangular(mask: torch.Tensor) -> torch.Tensor:
    length = mask.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=mask.device).triu(1)
    mask = mask.expand(*mask.shape[:-2], length, length)
    return mask.masked_fill(later, torch.finfo(mask.dtype).min if mask.is_floating_point() else 0)


def _choosing(original: Callable[..., Any], causal: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def make_mask(*args: object, **kwargs: object) -> Any:  # noqa: ANN401 - whatever the factory returns
        given = signature.bind(*args, **kwargs).arguments
        if not _enabled.get() or given.get("encoder_hidden_states") is not None:
            return original(*args, **kwargs)
        cache = given.get("cache", given.get("past_key_values"))  # its name before transformers 5.24
        # A mask is needed even where attention could be causal by itself: this one was not written to be.
        return causal(
            given["config"],
            given["inputs_embeds"],
            given.get("attention_mask"),
            cache,
            allow_is_causal_skip=False,
        )

    return make_mask
