"""Lengths of a text at which a model ends, or computes in another way than at the few tokens of a probe."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import nn

from mol.core.blocks.calls import tensors
from mol.core.blocks.inputs import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedModel

    from mol.core.blocks.driver import Driver

_BEGIN: Final = re.compile(r"window|chunk|block_size|index_topk|segment_means|landmark|max_distance|position_buckets")
_NO_LENGTH: Final = re.compile(r"pattern|layers|indices|num_windows")
_ROTARY: Final = ("original_max_position_embeddings", "max_position_embeddings")
_FEW: Final = 5
_FARTHEST, _WORK = 1 << 12, 1 << 34
"""The last threshold that is probed, and tokens times parameters that a probe may cost: seconds on two cores."""


class Limit(NamedTuple):
    """The number of tokens that a model is made for.

    Attributes:
        table: number of its positions, None if it computes them as needed; see `longest`.
        announced: the number in its config, None if there is none.
    """

    table: int | None
    announced: int | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Limit:
        """Return the limits of a model."""
        return cls(longest(model), announced(model))

    def ends(self, length: int) -> bool:
        """Return whether a text of so many tokens cannot be run."""
        return self.table is not None and self.table < length


def probe_lengths(driver: Driver, index: int, times: int = 1) -> list[int]:
    """Return the further lengths to probe a block at, some tokens beyond the thresholds in its config.

    Args:
        driver: the blocks.
        index: which.
        times: how many such blocks run in a probe.

    Lengths that would take too long, that the model has no positions for, and that change only its rotary positions
    (see `turns`) are left out.
    """
    if driver.is_fixed:
        return []
    parameters = sum(parameter.numel() for parameter in driver.calls.forms[index].block.parameters())
    return [
        length
        for length in (begin + _FEW for begin in thresholds(driver.owner.config))
        if length <= _FARTHEST + _FEW
        and length * parameters * times <= _WORK
        and length <= (longest(driver.owner) or length)
        and not turns(driver, _FEW, length)
    ]


def thresholds(config: PreTrainedConfig) -> list[int]:
    """Return the lengths in a config at which attention or a state begins to work in another way, ascending."""
    return sorted({value for name, value in _numbers(config.get_text_config().to_dict()) if _begins(name)} - {0, 1})


def announced(model: PreTrainedModel) -> int | None:
    """Return the number of tokens that a model's config says it is made for; None if it says nothing."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "max_target_positions", None)
    return most if isinstance(most, int) and most > 0 else None


def longest(model: PreTrainedModel) -> int | None:
    """Return the number of positions that a model has; None if it computes them as needed, like rotary ones."""
    config = model.config.get_text_config()
    most = announced(model) or getattr(config, "block_size", None)  # Bark's name for it, and others' name for a window
    if not isinstance(most, int):
        return None
    vocabulary = getattr(config, "vocab_size", None)  # models of sounds, images and hashed characters have none
    words = {id(module) for module in model.modules() if getattr(module, "num_embeddings", 0) == vocabulary}
    tables = [
        module.num_embeddings
        for module in model.modules()
        if isinstance(module, nn.Embedding) and id(module) not in words
    ]
    # Sinusoids and masks that were made for so many tokens; a cosine is computed again where it is too short.
    tables += [size for name, buffer in model.named_buffers() if "cos" not in name for size in buffer.shape]
    return most if any(most <= size <= most + 8 for size in tables) else None


def has_turns(driver: Driver) -> bool:
    """Return whether the length of a text changes what blocks are handed for earlier tokens.

    It does with rotary positions of the kinds "longrope" and "dynamic": beyond a length in the config the contents of a
    cache do not fit new tokens.
    """
    config = driver.owner.config.get_text_config()
    if driver.is_fixed or not driver.inputs.takes_positions or not getattr(config, "rope_parameters", None):
        return False
    most = longest(driver.owner)
    ends = {value for name, value in _numbers(config.to_dict()) if name in _ROTARY}
    return any(turns(driver, _FEW, end + 1) for end in ends if most is None or end < most)


def turns(driver: Driver, before: int, after: int) -> bool:
    """Return whether blocks are handed something else for the first tokens of a text when it grows.

    Args:
        driver: the blocks.
        before: tokens so far.
        after: tokens now.
    """
    if not driver.inputs.takes_positions or driver.is_fixed:
        return False
    return any(not torch.equal(a, b) for a, b in zip(_early(driver, before), _early(driver, after), strict=True))


def forget_lengths(driver: Driver) -> None:
    """Make a model forget the longest text that it has seen, which it would use for shorter ones too."""
    _early(driver, 0)


def _early(driver: Driver, length: int) -> list[torch.Tensor]:
    """Return what blocks are handed for the first tokens of a text, of which all others but the last are left out."""
    if length > _FEW:
        forget_lengths(driver)
    weight = next(driver.owner.parameters())
    mask = torch.ones(1, _FEW, dtype=torch.long, device=weight.device)
    positions = torch.arange(_FEW, device=weight.device)[None].clone()
    positions[0, -1] = max(length - 1, _FEW - 1)
    context = driver.context(Tokens(mask, positions, _FEW, weight.device, weight.dtype))
    found = []
    for form, call in zip(driver.calls.forms, context, strict=True):
        for tensor in tensors(form.with_hidden(call, None)):
            if tensor.is_floating_point():
                kept = tensor
                for axis, size in enumerate(tensor.shape):
                    kept = kept.narrow(axis, 0, _FEW - 1) if size == _FEW else kept
                found.append(kept.clone())
    return found


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, int]]:
    """Yield every whole number in a config with its name, or that of the list it is in."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one, str(key))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _numbers(one, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


def _begins(name: str) -> bool:
    return bool(_BEGIN.search(name)) and not _NO_LENGTH.search(name)
