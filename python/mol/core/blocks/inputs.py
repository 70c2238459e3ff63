"""Makes the inputs of a model's own forward: real ones of tokens, or placeholders of the right sizes for a prelude."""

from __future__ import annotations

import inspect
import math
from functools import cache as cached
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import torch
from transformers import PreTrainedConfig

from mol.core.cache import CACHE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn
    from transformers import PreTrainedModel

    from mol.core.cache import ExpertCache

CACHE_NAMES: Final = (CACHE_NAME, "cache_params")
CacheMask = Literal["whole", "new"]
"""Which mask a model's own forward takes next to a cache: that of all tokens, or that of the new ones."""
_BLANK, _IDS = 7, (8, 30)
"""Tokens that every vocabulary has; the first few are special in most."""


class Tokens(NamedTuple):
    """The tokens of a forward, without their ids.

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
        """Return the last `length` tokens under a mask; positions count unmasked tokens, as `generate` does."""
        return cls(mask, positions_of(mask, length), length, mask.device, dtype)


def positions_of(mask: torch.Tensor, length: int) -> torch.Tensor:
    """Return the positions (B, T) of the last `length` tokens under a mask (B, P + T), padding not counted."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, mask.shape[1] - length :]


def takes(model: nn.Module, name: str) -> bool:
    """Return whether a model's forward has an argument of this name."""
    # A class can be hashed, whatever torch says of its instances.
    return name in _arguments_of(type(model))  # type: ignore[arg-type]


@cached
def _arguments_of(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def token_inputs(
    model: nn.Module,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    cache: ExpertCache | None = None,
    *,
    positions: bool,
    cache_mask: CacheMask = "whole",
) -> dict[str, Any]:
    """Return the inputs of a real forward of a model, or of a part of it that drives the blocks.

    Args:
        model: takes them.
        input_ids: the new tokens (B, T).
        mask: (B, P + T) over all tokens so far.
        cache: the model's own, of the P tokens.
        positions: count positions by the mask, as `generate` does. A model that is not causal numbers them itself:
            those of RoBERTa, say, start at 2.
        cache_mask: which mask it takes next to a cache.
    """
    shown = mask if cache is None or cache_mask == "whole" else mask[:, mask.shape[1] - input_ids.shape[1] :]
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": shown}
    if positions and takes(model, "position_ids"):
        inputs["position_ids"] = positions_of(mask, input_ids.shape[1])
    if takes(model, "use_cache"):
        inputs["use_cache"] = cache is not None
    name = None if cache is None else next((name for name in CACHE_NAMES if takes(model, name)), None)
    if name is not None:
        inputs[name] = cache
    return inputs


class Way(NamedTuple):
    """An argument from which a model can run.

    Attributes:
        name: of the argument.
        axes: of its tensor, by the names that `_Sizes` knows; `batch*patches` is one axis.
    """

    name: str
    axes: tuple[str, ...]

    @property
    def is_signal(self) -> bool:
        """Whether it is an image or sound, whose size and not the tokens determines the number of hidden states."""
        return "tokens" not in self.axes

    def __str__(self) -> str:
        """Return its name in messages."""
        return f"{self.name} ({', '.join(self.axes)})"


def _ways(*lines: str) -> tuple[Way, ...]:
    return tuple(Way(name, tuple(axes)) for name, *axes in (line.split() for line in lines))


# The arguments that transformers' models share, the preferred first.
WAYS: Final = _ways(
    "inputs_embeds batch tokens width",
    "input_ids batch tokens",
    "hidden_states batch tokens width",
    "query_embeds batch tokens width",
    "pixel_values batch channels height breadth",
    "pixel_values batch frames channels height breadth",
    "pixel_values batch*patches patch",
    "pixel_values batch patches patch",
    "pixel_values batch*patches channels edge edge",
    "pixel_values batch*patches frames_in_patch channels edge edge",
    "pixel_values batch channels edge strip",
    "pixel_values_videos batch frames channels height breadth",
    "hidden_states batch*patches patch",
    "input_features batch bins steps",
    "input_features batch steps bins",
    "input_features batch bins all_steps",
    "input_values batch samples",
    "input_values batch one samples",
    "input_values batch all_steps bins",
    "past_values batch context",
    "past_values batch context variables",
)  # fmt: skip


class Inputs:
    """One way to run a model.

    Attributes:
        way: which.
        cache_name: the model's name for its cache, None if it has none or runs from a signal.
        takes_positions: whether it accepts the positions of its tokens.
    """

    def __init__(self, model: PreTrainedModel, way: Way | str) -> None:
        """Read which arguments the model takes; a name means the first way that has it."""
        self.way = way if isinstance(way, Way) else next(known for known in WAYS if known.name == way)
        self._model = model
        self._parameters = inspect.signature(model.forward).parameters
        named = (name for name in CACHE_NAMES if name in self._parameters and not self.way.is_signal)
        self.cache_name = next(named, None)
        self.takes_positions = "position_ids" in self._parameters and not self.way.is_signal

    @classmethod
    def of(cls, model: PreTrainedModel) -> Iterator[Inputs]:
        """Yield the ways for which a model's forward has an argument, the preferred first."""
        parameters = inspect.signature(model.forward).parameters
        return (cls(model, way) for way in WAYS if way.name in parameters)

    def make(
        self,
        tokens: Tokens,
        cache: ExpertCache | None = None,
        *,
        content: torch.Generator | None = None,
        scale: int = 1,
    ) -> dict[str, Any]:
        """Return the inputs of one forward.

        Args:
            tokens: how many, where, under which mask.
            cache: of the model, passed to it.
            content: draws the values; zeros, or one token over and over, if None.
            scale: size of a signal whose size is free.

        Raises:
            LookupError: the model's config has no entry for a size.
        """
        sizes = _Sizes(self._model, tokens, scale)
        shape = sizes.shape(self.way)
        if self.way.name == "input_ids":
            drawn = torch.full(shape, _BLANK) if content is None else torch.randint(*_IDS, shape, generator=content)
            inputs: dict[str, Any] = {"input_ids": drawn.to(tokens.device)}
        else:
            drawn = torch.zeros(shape) if content is None else torch.randn(shape, generator=content)
            inputs = {self.way.name: drawn.to(tokens.device, tokens.dtype)}
        if self.way.is_signal:
            for name, make in _WITH_SIGNALS.items():
                if name in self._parameters:
                    inputs[name] = make(sizes).to(tokens.device)
            return inputs
        if "attention_mask" in self._parameters:
            inputs["attention_mask"] = tokens.mask
        if "position_ids" in self._parameters:
            inputs["position_ids"] = tokens.positions
        if "bbox" in self._parameters:
            inputs["bbox"] = torch.zeros(*tokens.positions.shape, 4, device=tokens.device, dtype=torch.long)
        if "use_cache" in self._parameters:
            inputs["use_cache"] = cache is not None
        if cache is not None and self.cache_name is not None:
            inputs[self.cache_name] = cache
        return inputs


# Axes whose size is in the config, by the names that it may have there, and its default.
_READ: Final[dict[str, tuple[tuple[str, ...], int | None]]] = {
    "frames": (("num_frames", "frames_per_clip"), 2),
    "frames_in_patch": (("temporal_patch_size",), 1),
    "channels": (("num_channels", "in_channels", "in_chans"), 3),
    "edge": (("patch_size", "spatial_patch_size"), 16),
    "context": (("context_length",), None),
    "variables": (("num_input_channels", "input_size"), None),
    "width": (("hidden_size", "d_model", "embed_dim", "dim"), None),
    "bins": (
        ("num_mel_bins", "feature_size", "input_feat_size", "input_dim", "feature_projection_input_dim", "n_mels"),
        80,
    ),
}
_SIDES: Final = ("image_size", "input_size", "img_size")


class _Sizes:
    """The sizes of axes by their names, read from a model's config and, where it is composite, the parts of that."""

    def __init__(self, model: PreTrainedModel, tokens: Tokens, scale: int) -> None:
        self._model = model
        config = model.config
        self._configs = [config, *(part for part in vars(config).values() if isinstance(part, PreTrainedConfig))]
        self.side = 4 * scale
        self._known = {
            "one": 1,
            "batch": tokens.mask.shape[0],
            "tokens": tokens.length,
            "patches": self.side**2,
            "steps": 64 * scale,
            "samples": 4000 * scale,
        }

    def shape(self, way: Way) -> tuple[int, ...]:
        return tuple(math.prod(self.size(name) for name in axis.split("*")) for axis in way.axes)

    def size(self, axis: str) -> int:
        if axis in self._known:
            return self._known[axis]
        if axis in ("height", "breadth"):
            found = self._read(_SIDES, 0 if axis == "height" else -1)
            return self.side * self.size("edge") if found is None else found
        if axis == "strip":  # patches in a row
            return self.size("patches") * self.size("edge")
        if axis == "patch":
            return self.size("channels") * self.size("frames_in_patch") * self.size("edge") ** 2
        if axis == "all_steps":  # a fixed number: convolutions halve those that are given as positions
            positions = self._read(("max_source_positions",))
            return 2 * positions if positions else self._required(("max_length",), None)
        embedded = self._embedded() if axis == "width" else None
        return self._required(*_READ[axis]) if embedded is None else embedded

    def _embedded(self) -> int | None:
        try:
            embeddings = self._model.get_input_embeddings()
        except (NotImplementedError, AttributeError):
            return None  # a part without embeddings of its own
        matrices = [] if embeddings is None else [p for p in embeddings.parameters() if p.dim() == 2]
        return int(matrices[0].shape[1]) if matrices else None

    def _required(self, names: tuple[str, ...], default: int | None) -> int:
        found = self._read(names)
        if found is None and default is None:
            raise LookupError(f"the config has no {' or '.join(names)}")
        return default or 0 if found is None else found

    def _read(self, names: tuple[str, ...], index: int = 0) -> int | None:
        for config in self._configs:
            for name in names:
                value = getattr(config, name, None)
                if isinstance(value, (list, tuple)) and value:
                    value = value[index]
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return None


def _grid(sizes: _Sizes) -> torch.Tensor:
    return torch.tensor([[1, sizes.side, sizes.side]] * sizes.size("batch"))


def _sides(sizes: _Sizes) -> torch.Tensor:
    return torch.tensor([[sizes.side, sizes.side]] * sizes.size("batch"))


def _patch_positions(sizes: _Sizes) -> torch.Tensor:
    side = torch.arange(sizes.side)
    return torch.cartesian_prod(side, side)[None].expand(sizes.size("batch"), -1, -1)


def _ones(*axes: str) -> Callable[[_Sizes], torch.Tensor]:
    return lambda sizes: torch.ones(*(sizes.size(axis) for axis in axes), dtype=torch.long)


# What goes with patches and features, by the names that transformers' models share.
_WITH_SIGNALS: Final = {
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "spatial_shapes": _sides,
    "target_sizes": _sides,
    "pixel_position_ids": _patch_positions,
    "pixel_attention_mask": _ones("batch", "patches"),
    "merge_sizes": _ones("batch"),
    "input_features_mask": _ones("batch", "steps"),
}
