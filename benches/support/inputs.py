"""Draws inputs that a whole model may take: tokens, images, videos, sound, and pairs of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from mol.core.blocks.inputs import Inputs as MoreInputs
from mol.core.blocks.inputs import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

BATCH, LENGTH, SHORT = 2, 12, 9
_LOWEST, _HIGHEST = 60, 120
"""Tokens are drawn from what no special token has, see tiny_configs.py."""

Inputs = dict[str, Any]


class Drawer:
    """Draws inputs of a model from one seed.

    Attributes:
        model: takes them.
    """

    def __init__(self, model: PreTrainedModel, seed: int = 0) -> None:
        """Start with a seed."""
        self.model = model
        self._tokens = Tokens.of(torch.ones(BATCH, LENGTH, dtype=torch.long), LENGTH, torch.float32)
        self._generator = torch.Generator().manual_seed(seed)
        config = model.config
        parts = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
        self._configs = [config, *parts]

    def candidates(self) -> Iterator[Inputs]:
        """Yield inputs, the likeliest first."""
        main = self.model.main_input_name
        mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
        text = {"input_ids": self._ids(), "attention_mask": mask}
        pair = {**text, "decoder_input_ids": self._ids(SHORT)}
        if main == "input_ids":
            yield from (text, pair, {"input_ids": self._ids()})
            for image in self._images():
                yield text | image
                yield image | {"decoder_input_ids": self._ids(SHORT)}
        elif main.startswith("pixel"):
            for image in self._images():
                yield from (image, text | image)
        elif main.startswith("input_"):
            yield from self._sounds()
        yield from (text, pair, {"input_ids": self._ids(), "decoder_input_ids": self._ids(SHORT)})
        yield from self._images()
        yield from self._sounds()
        for way in MoreInputs.of(self.model):
            with contextlib.suppress(LookupError):
                inputs = way.make(self._tokens, content=self._generator)
                yield from (inputs, inputs | {"decoder_input_ids": self._ids(SHORT)}, text | inputs)

    def _ids(self, length: int = LENGTH) -> torch.Tensor:
        return torch.randint(_LOWEST, _HIGHEST, (BATCH, length), generator=self._generator)

    def _noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator)

    def _images(self) -> Iterator[Inputs]:
        for config in self._configs:
            side = _number(config, "image_size", "input_size", "img_size", default=32)
            channels = _number(config, "num_channels", "in_channels", "in_chans", default=3)
            frames = _number(config, "frames_per_clip", "num_frames", default=2)
            yield {"pixel_values": self._noise(BATCH, channels, side, side)}
            yield {"pixel_values": self._noise(BATCH, frames, channels, side, side)}
            yield {"pixel_values_videos": self._noise(BATCH, frames, channels, side, side)}

    def _sounds(self) -> Iterator[Inputs]:
        names = ("num_mel_bins", "feature_size", "input_feat_size", "input_dim", "feature_projection_input_dim")
        for config in self._configs:
            bins = _number(config, *names, default=16)
            for length in (64, 128, 2 * _number(config, "max_source_positions", default=32)):
                for shape in ((bins, length), (length, bins)):
                    features = {"input_features": self._noise(BATCH, *shape)}
                    mask = torch.ones(BATCH, length, dtype=torch.long)
                    yield features
                    yield features | {"decoder_input_ids": self._ids(SHORT)}
                    yield features | {"attention_mask": mask}
            wave = self._noise(BATCH, 4000)
            yield {"input_values": wave}
            yield {"input_values": wave[:, None]}
            yield {"input_values": wave, "decoder_input_ids": self._ids(SHORT)}
            yield {"input_values": self._noise(BATCH, 64, bins)}


def _number(config: PreTrainedConfig, *names: str, default: int) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return default
