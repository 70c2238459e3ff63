"""Registers fused models and mixtures with transformers: after `import mol.auto`, its Auto classes load them."""

from mol.core.mol_runtime import (
    MoLForCausalLM,
    MoLForImageClassification,
    MoLForMaskedLM,
    MoLForSequenceClassification,
    MoLForTokenClassification,
)
from mol.core.pretrained.fused_model import MoLModel
from mol.core.pretrained.mixture import MoLMixture
from mol.core.pretrained.mixture_config import MoLMixtureConfig
from mol.core.pretrained.model_config import MoLModelConfig

__all__ = [
    "MoLForCausalLM",
    "MoLForImageClassification",
    "MoLForMaskedLM",
    "MoLForSequenceClassification",
    "MoLForTokenClassification",
    "MoLMixture",
    "MoLMixtureConfig",
    "MoLModel",
    "MoLModelConfig",
]
