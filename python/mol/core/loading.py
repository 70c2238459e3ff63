"""Loads the models of a fusion through transformers: the host with its head, the others as bare models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from mol.errors import MolError

if TYPE_CHECKING:
    from mol.config.mol_config import MoLConfig


def load_host(name: str, settings: MoLConfig) -> PreTrainedModel:
    """Load a model with its language model head.

    Raises:
        MolError: the model reads and writes with two stacks, or has no such head.
        OSError: it cannot be had.
    """
    config = _config(name, settings)
    if config.is_encoder_decoder:
        raise MolError(
            f"{name} ({config.model_type}) has an encoder and a decoder and cannot be the host yet; name it after a "
            "model with one stack, as a source of blocks it can be used"
        )
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return _load(AutoModelForMaskedLM, name, settings)
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return _load(AutoModelForCausalLM, name, settings)
    raise MolError(f"{name} ({config.model_type}) has no language model head and cannot be the host")


def load_source(name: str, settings: MoLConfig) -> PreTrainedModel:
    """Load a model without its head."""
    return _load(AutoModel, name, settings)


def load_tokenizer(name: str, settings: MoLConfig) -> PreTrainedTokenizerBase:
    """Load a tokenizer; padding goes by the end of text where it has no token of its own, as is usual."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **_where(name, settings))
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _config(name: str, settings: MoLConfig) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.from_pretrained(name, **_where(name, settings))
    return config


def _load(kind: Any, name: str, settings: MoLConfig) -> PreTrainedModel:  # noqa: ANN401 - one of the Auto classes
    chosen: dict[str, Any] = {"dtype": settings.dtype_of(name) or "auto"}
    if settings.attn_implementation is not None:
        chosen["attn_implementation"] = settings.attn_implementation
    # Pickles are never read.
    model: PreTrainedModel = kind.from_pretrained(name, use_safetensors=True, **chosen, **_where(name, settings))
    return model


def _where(name: str, settings: MoLConfig) -> dict[str, Any]:
    return {
        "revision": settings.revisions.get(name, "main"),
        "cache_dir": settings.cache_dir,
        "token": settings.token,
        "trust_remote_code": settings.trust_remote_code,
    }
