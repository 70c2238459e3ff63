"""Chooses the head that a host is loaded with: that of its checkpoint, else a language model head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto

from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedConfig


class Head(NamedTuple):
    """The head of a host.

    Attributes:
        auto_class: the Auto class that loads it.
        classes: names of the classes that have it, by model type; some types have several.
        does: its task, as messages say it.
    """

    auto_class: Any
    classes: Mapping[str, str | tuple[str, ...]]
    does: str


MASKED_LM: Final = Head(AutoModelForMaskedLM, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "fill masked tokens")
CAUSAL_LM: Final = Head(AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "predict the next token")
SEQUENCE_CLASSIFICATION: Final = Head(
    AutoModelForSequenceClassification,
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "classify texts",
)
TOKEN_CLASSIFICATION: Final = Head(
    AutoModelForTokenClassification, modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, "classify tokens"
)
IMAGE_CLASSIFICATION: Final = Head(
    AutoModelForImageClassification, modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "classify images"
)
HEADS: Final = (MASKED_LM, CAUSAL_LM, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, IMAGE_CLASSIFICATION)


def head_of(config: PreTrainedConfig) -> Head:
    """Choose the head of a host by its config.

    A checkpoint that names no class with a head, like those of older encoders, gets a language model head, masked
    before causal unless it is a decoder; loading it fails if the files lack its weights.

    Raises:
        FusionError: the model has an encoder and a decoder, or no head that a host can have.
    """
    name, kind = config.name_or_path or config.model_type, config.model_type
    if config.is_encoder_decoder:
        raise FusionError(
            f"{name} ({kind}) has an encoder and a decoder and cannot be the host; list a single-stack model "
            "first; this one can still supply blocks"
        )
    heads = [head for head in HEADS if not (getattr(config, "is_decoder", False) and head is MASKED_LM)]
    saved_as = config.architectures or []
    for head in heads:
        known = head.classes.get(kind, ())
        if any(saved in ((known,) if isinstance(known, str) else known) for saved in saved_as):
            return head
    code = getattr(config, "auto_map", None) or {}  # of a model that brings its own code
    for head in heads:
        if head.auto_class.__name__ in code or (head in HEADS[:2] and kind in head.classes):
            return head
    raise FusionError(
        f"{name} ({kind}{', saved as ' + saved_as[0] if saved_as else ''}) has no head and cannot be the host; a host "
        f"must be made to {', '.join(head.does for head in HEADS[:-1])} or {HEADS[-1].does}"
    )


def head_class(config: PreTrainedConfig) -> Any:  # noqa: ANN401 - one of the Auto classes
    """Return the Auto class that loads a host with this config; see `head_of` for the choice.

    Raises:
        FusionError: it cannot be a host.
    """
    return head_of(config).auto_class
