"""Fusion at run time: blocks of several models as experts of one. The first floor that loads torch, on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mol.architecture import ArchitectureInfo, UniversalArchitectureHandler
    from mol.config.mol_config import MoLConfig
    from mol.core.adapters import BaseAdapter, BottleneckAdapter, LinearAdapter, create_adapter
    from mol.core.fitting.suggest import suggest_layers
    from mol.core.mol_runtime import (
        MoLForCausalLM,
        MoLForImageClassification,
        MoLForMaskedLM,
        MoLForSequenceClassification,
        MoLForTokenClassification,
        MoLRuntime,
    )
    from mol.core.pretrained.mixture import MoLMixture
    from mol.core.pretrained.mixture_config import MoLMixtureConfig
    from mol.core.pretrained.model_config import MoLModelConfig
    from mol.core.routers import BaseRouter, SimpleRouter, TokenLevelRouter, create_router

__all__ = [
    "ArchitectureInfo",
    "BaseAdapter",
    "BaseRouter",
    "BottleneckAdapter",
    "LinearAdapter",
    "MoLConfig",
    "MoLForCausalLM",
    "MoLForImageClassification",
    "MoLForMaskedLM",
    "MoLForSequenceClassification",
    "MoLForTokenClassification",
    "MoLMixture",
    "MoLMixtureConfig",
    "MoLModelConfig",
    "MoLRuntime",
    "SimpleRouter",
    "TokenLevelRouter",
    "UniversalArchitectureHandler",
    "create_adapter",
    "create_router",
    "suggest_layers",
]

if not TYPE_CHECKING:
    _HOMES = {
        "mol.architecture": ("ArchitectureInfo", "UniversalArchitectureHandler"),
        "mol.config.mol_config": ("MoLConfig",),
        "mol.core.adapters": ("BaseAdapter", "BottleneckAdapter", "LinearAdapter", "create_adapter"),
        "mol.core.mol_runtime": (
            "MoLForCausalLM",
            "MoLForImageClassification",
            "MoLForMaskedLM",
            "MoLForSequenceClassification",
            "MoLForTokenClassification",
            "MoLRuntime",
        ),
        "mol.core.pretrained.mixture": ("MoLMixture",),
        "mol.core.pretrained.mixture_config": ("MoLMixtureConfig",),
        "mol.core.pretrained.model_config": ("MoLModelConfig",),
        "mol.core.routers": ("BaseRouter", "SimpleRouter", "TokenLevelRouter", "create_router"),
        "mol.core.fitting.suggest": ("suggest_layers",),
    }

    def __getattr__(name: str) -> object:
        from mol.later import find

        value = globals()[name] = find("mol.core", name, _HOMES)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
