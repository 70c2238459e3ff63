"""Registers fused models with transformers: after `import mol.auto`, AutoModelForCausalLM and so on load them."""

from mol.core.pretrained.causal_lm import MoLForCausalLM
from mol.core.pretrained.fused_model import MoLModelConfig
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
    "MoLModelConfig",
]
