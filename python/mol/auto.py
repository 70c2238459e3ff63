"""Registers fused models with transformers: after `import mol.auto`, AutoModelForCausalLM loads them."""

from mol.core.causal_lm import MoLForCausalLM, MoLModelConfig

__all__ = ["MoLForCausalLM", "MoLModelConfig"]
