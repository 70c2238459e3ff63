"""Determines the family of a model from what its type reads and which heads transformers has for it.

The rules, first match wins:

1. Images and text: MULTIMODAL, also in an encoder and a decoder (Florence-2, Pix2Struct), and also text with its
   position on a page (LayoutLM, LiLT, BROS). So is text with anything else but audio (Evolla reads proteins).
2. Audio: ENCODER_DECODER where the config says so (Whisper, Moonshine); else MULTIMODAL with text (CLAP, Qwen2-Audio),
   OTHER without (wav2vec 2.0, codecs), as there is no family of audio encoders.
3. Images or video alone: VISION, whatever halves it has (ViT, DETR).
4. Neither text, images nor audio (time series, states), or text that only becomes speech (VITS, Bark): OTHER.
5. Text in two halves: ENCODER_DECODER, unless the checkpoint is of the encoder alone (T5EncoderModel).
6. Text in one half: DECODER_ONLY where the config says `is_decoder`; ENCODER_ONLY where there is a class with a masked
   head, though many encoders have one with a causal head too (BERT); DECODER_ONLY where a class generates text, or
   where a tower without heads of its own caches keys; else ENCODER_ONLY.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mol.architecture.info import ArchitectureFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig

    from mol.architecture.classes import Kind

_GENERATES: Final = frozenset({"CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"})
_SPEAKS: Final = frozenset({"TEXT_TO_WAVEFORM", "TEXT_TO_SPECTROGRAM"})
_WRITES: Final = frozenset({"CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"})

# What a class reads by the name of its main input, where it does not declare it.
_INPUTS: Final = {
    "input_ids": "text",
    "inputs_embeds": "text",
    "pixel_values": "image",
    "pixel_values_videos": "image",
    "input_values": "audio",
    "input_features": "audio",
}
# What a part of a composite model reads, by the key that holds its config.
_TOWERS: Final = {
    "text_config": "text",
    "vision_config": "image",
    "image_config": "image",
    "video_config": "image",
    "backbone_config": "image",
    "audio_config": "audio",
    "speech_config": "audio",
    "protein_encoder_config": "proteins",
}
_NESTED: Final = {**_TOWERS, "audio_video_config": "image"}
# Keys of a config that only a model of images, or of audio, has.
_IMAGE_KEYS: Final = ("image_size", "num_channels")
_AUDIO_KEYS: Final = ("sampling_rate", "num_mel_bins")
_PAGE_KEYS: Final = ("max_2d_position_embeddings", "dim_bbox")
# Words for images in the keys of a config.
_SIGHT: Final = ("image", "vis", "patch", "pixel", "video")

# The few types whose classes, or heads, say something else than what the model is.
_MISDECLARED: Final = {
    "blt": ("text", "its classes inherit what Mllama's declare, images; it reads bytes"),
}
_ENCODERS: Final = {
    "bert-generation": "an encoder unless `is_decoder`, as BERT, but only its causal class is registered",
}


def find_family(config: PreTrainedConfig, kind: Kind, architecture: str | None = None) -> ArchitectureFamily:
    """Apply the rules at the top of this module.

    Args:
        config: the model's config.
        kind: what transformers knows of its type.
        architecture: the class that config.json names, None where it names none.
    """
    reads = find_inputs(config, kind)
    if "audio" in reads and "image" not in reads:
        if config.is_encoder_decoder:
            return ArchitectureFamily.ENCODER_DECODER
        return ArchitectureFamily.MULTIMODAL if "text" in reads else ArchitectureFamily.OTHER
    if len(reads) > 1:
        return ArchitectureFamily.MULTIMODAL if "text" in reads else ArchitectureFamily.VISION
    if reads == {"image"}:
        return ArchitectureFamily.VISION
    if reads != {"text"} or (kind.heads & _SPEAKS and not kind.heads & _WRITES):
        return ArchitectureFamily.OTHER
    return _find_half(config, kind, architecture)


def find_inputs(config: PreTrainedConfig, kind: Kind) -> frozenset[str]:
    """Return what a model reads: `text`, `image` (video too), `audio`, or something else by its name."""
    package = type(config).__module__.split(".")[2:3]
    if package and package[0] in _MISDECLARED:
        return frozenset({_MISDECLARED[package[0]][0]})
    own = _tower(config, kind)
    if own is not None:
        return frozenset({own})
    reads = _declared(config, kind)
    reads.update(what for key, what in _NESTED.items() if key in type(config).sub_configs)
    # Heads over a vocabulary read tokens, whatever the class declares first (Perceiver).
    if "image" in reads and kind.heads & {"MASKED_LM", "CAUSAL_LM"}:
        reads.add("text")
    # Prompts of points and boxes are declared as text (SAM), and a tower as what the whole model reads.
    if "text" in reads and len(reads) > 1 and not any(_has_vocabulary(part) for part in _parts(config)):
        reads.remove("text")
    if {"image", "text"} <= reads and kind.is_part and not type(config).sub_configs and not _sees(config):
        reads.remove("image")
    if any(getattr(config, key, None) is not None for key in _PAGE_KEYS):
        reads.add("image")
    return frozenset(reads)


def _tower(config: PreTrainedConfig, kind: Kind) -> str | None:
    """Return what a part of a composite model reads, by the key that holds its config or by the type's last word."""
    key = config.base_config_key
    if isinstance(key, str) and key in _TOWERS:
        return _TOWERS[key]
    if key or not kind.is_part or type(config).sub_configs:
        return None
    words = config.model_type.replace("-", "_").removesuffix("_model").split("_")
    return _TOWERS.get(f"{words[-1]}_config") if len(words) > 1 else None


def _declared(config: PreTrainedConfig, kind: Kind) -> set[str]:
    if kind.model_class is None:
        return _evident(config)
    said: Any = kind.model_class.input_modalities
    main: Any = kind.model_class.main_input_name
    if said == "text" and isinstance(main, str):  # the default, which some types leave as it is
        return {_INPUTS.get(main, main)}
    return {"image" if what == "video" else what for what in ([said] if isinstance(said, str) else said)}


def _evident(config: PreTrainedConfig) -> set[str]:
    """Return what the keys of a config show, where no class of its type can be imported."""
    reads = {"text"} if _has_vocabulary(config) else set()
    for what, keys in (("image", _IMAGE_KEYS), ("audio", _AUDIO_KEYS)):
        if any(getattr(config, key, None) is not None for key in keys):
            reads.add(what)
    return reads


def _find_half(config: PreTrainedConfig, kind: Kind, architecture: str | None) -> ArchitectureFamily:
    encoder = kind.classes.get("TEXT_ENCODING")
    if architecture is not None and architecture == encoder != kind.classes.get("MODEL"):
        return ArchitectureFamily.ENCODER_ONLY
    words = config.model_type.replace("-", "_").split("_")
    if kind.is_part and "decoder" in words:
        return ArchitectureFamily.DECODER_ONLY
    if kind.is_part and "encoder" in words:
        return ArchitectureFamily.ENCODER_ONLY
    if config.is_encoder_decoder:
        return ArchitectureFamily.ENCODER_DECODER
    switch = getattr(config, "is_decoder", None)  # only types that can be either half have it
    if switch:
        return ArchitectureFamily.DECODER_ONLY
    if "MASKED_LM" in kind.heads or config.model_type in _ENCODERS:
        return ArchitectureFamily.ENCODER_ONLY
    if kind.heads & _GENERATES:
        return ArchitectureFamily.DECODER_ONLY
    if kind.is_part and switch is None and getattr(config, "use_cache", None) is not None:
        return ArchitectureFamily.DECODER_ONLY
    return ArchitectureFamily.ENCODER_ONLY


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    from transformers import PreTrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _has_vocabulary(config: PreTrainedConfig) -> bool:
    size = getattr(config, "vocab_size", None)
    return isinstance(size, int) and size > 0


def _sees(config: PreTrainedConfig) -> bool:
    return any(word in key for key in vars(config) for word in _SIGHT)
