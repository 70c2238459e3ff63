"""ArchitectureInfo: what is known of a model before any of its weights is read."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any


class ArchitectureFamily(str, Enum):
    """What a model reads, and which half of a transformer it is; `mol.architecture.family` has the rules."""

    DECODER_ONLY = "decoder_only"
    ENCODER_ONLY = "encoder_only"
    ENCODER_DECODER = "encoder_decoder"
    VISION = "vision"
    MULTIMODAL = "multimodal"
    OTHER = "other"

    def __str__(self) -> str:
        """Return the value, e.g. `decoder_only`."""
        return self.value


@dataclass(frozen=True, slots=True)
class ArchitectureInfo:
    """A model's architecture.

    Paths are those of modules in the class that `config.json` names (`architectures`), else in the class that has the
    head of the model's family, as `model.get_submodule(path)` takes them. Of a model with several towers, paths and
    sizes are those of the one that reads text; of an encoder and a decoder, the encoder's. A field that the model does
    not have, or that its config does not say, is None.

    Attributes:
        model_name: as the caller named the model.
        architecture_family: what it reads, and which half of a transformer it is.
        architecture_type: `model_type` of its config.json.
        layer_path: the list of its blocks; None where it has none, as convolutional networks.
        embedding_path: its table of token embeddings; of a vision model, the projection of patches.
        lm_head_path: what turns hidden states into logits over the vocabulary; a pooler or a classifier is none.
        hidden_dim: width of the hidden states; where it grows by stages, of the last.
        num_layers: blocks of the tower; a stage counts as one. Longer than the list where blocks are shared (ALBERT).
        num_attention_heads: of a block; None without attention.
        intermediate_size: inner width of a block's feed-forward part.
        vocab_size: rows of the token embeddings.
        max_position_embeddings: longest sequence; None where positions are relative or patches of an image.
        layer_norm_eps: epsilon of the norms; None where the class fixes it (BART, DistilBERT).
        supports_causal_lm: AutoModelForCausalLM has a class for it, and as configured it neither is an encoder nor has
            one (BERT and BART have such classes for other configs).
        supports_masked_lm: AutoModelForMaskedLM has a class for it.
        requires_remote_code: transformers does not know the type, and code that comes with the model was run.
        model_signature: parameters of its blocks' forward, and whether each must be given.
        rope_info: its rotary positions as transformers normalises them, None without.
    """

    model_name: str
    architecture_family: ArchitectureFamily
    architecture_type: str
    layer_path: str | None
    embedding_path: str | None
    lm_head_path: str | None
    hidden_dim: int | None
    num_layers: int | None
    num_attention_heads: int | None
    intermediate_size: int | None
    vocab_size: int | None
    max_position_embeddings: int | None
    layer_norm_eps: float | None
    supports_causal_lm: bool
    supports_masked_lm: bool
    requires_remote_code: bool
    model_signature: dict[str, bool] | None = field(default=None, hash=False)
    rope_info: dict[str, Any] | None = field(default=None, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return {item.name: getattr(self, item.name) for item in fields(self)} | {
            "architecture_family": self.architecture_family.value
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ArchitectureInfo:
        """Read what `to_dict` returned.

        Raises:
            KeyError: a field is missing.
            ValueError: there is no such family.
        """
        known = {item.name: values[item.name] for item in fields(cls)}
        return cls(**known | {"architecture_family": ArchitectureFamily(values["architecture_family"])})

    def named(self, model_name: str) -> ArchitectureInfo:
        """Return the same architecture under another model's name."""
        return replace(self, model_name=model_name)
