"""Registers fused models with transformers: after `import mol.auto`, AutoModelForCausalLM and so on load them."""

from mol.core.causal_lm import MoLForCausalLM
from mol.core.pretrained import MoLModelConfig
from mol.core.task_models import (
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
