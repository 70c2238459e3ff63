"""Registers fused models and mixtures with transformers: after `import mol.auto`, its Auto classes load them."""

from mol.core.pretrained.body import MoLModel
from mol.core.pretrained.causal_lm import MoLForCausalLM
from mol.core.pretrained.fused_model import MoLModelConfig
from mol.core.pretrained.mixture import MoLMixture, MoLMixtureConfig
from mol.core.pretrained.task_models import (
    MoLForImageClassification,
    MoLForMaskedLM,
    MoLForSequenceClassification,
    MoLForTokenClassification,
)

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
