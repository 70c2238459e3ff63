"""mol: merge language model checkpoints natively, in constant memory, or run blocks of several as one model.

Everything here is imported on first use, so that `import mol` costs nothing and a merge never loads torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mol.architecture import UniversalArchitectureHandler
    from mol.config import MergeConfig, ModelReference, load_recipe
    from mol.config.mol_config import MoLConfig
    from mol.core import (
        MoLForCausalLM,
        MoLForImageClassification,
        MoLForMaskedLM,
        MoLForSequenceClassification,
        MoLForTokenClassification,
        MoLMixture,
        MoLRuntime,
        suggest_layers,
    )
    from mol.core.evaluation.evaluate import evaluate
    from mol.core.evaluation.scores import DomainScore, Evaluation
    from mol.core.mol_runtime import push_mol_to_hf
    from mol.core.safetensors_io import is_safetensors_available, load_model_safe, save_model_safe
    from mol.errors import (
        ArchitectureError,
        CheckpointError,
        ConfigError,
        FusionError,
        InternalError,
        MergeCancelled,
        MergeError,
        MolError,
    )
    from mol.merge.opening import resolve_checkpoints
    from mol.merge.options import MergeOptions
    from mol.merge.run import MergeReport, plan_recipe, run_merge
    from mol.merge_methods.base_merge import BaseMergeMethod, PendingMerge
    from mol.merge_methods.methods import LinearMerge, PassthroughMerge, SlerpMerge, TaskArithmeticMerge, TiesMerge
    from mol.training import MoLTrainer, TrainingCallback, TrainingConfig, create_simple_dataset
    from mol.utils.safetensors_utils import SAFETENSORS_AVAILABLE, SafeTensorsManager, safetensors_manager

    __version__: str

__all__ = [
    "SAFETENSORS_AVAILABLE",
    "ArchitectureError",
    "BaseMergeMethod",
    "CheckpointError",
    "ConfigError",
    "DomainScore",
    "Evaluation",
    "FusionError",
    "InternalError",
    "LinearMerge",
    "MergeCancelled",
    "MergeConfig",
    "MergeError",
    "MergeOptions",
    "MergeReport",
    "MoLConfig",
    "MoLForCausalLM",
    "MoLForImageClassification",
    "MoLForMaskedLM",
    "MoLForSequenceClassification",
    "MoLForTokenClassification",
    "MoLMixture",
    "MoLRuntime",
    "MoLTrainer",
    "ModelReference",
    "MolError",
    "PassthroughMerge",
    "PendingMerge",
    "SafeTensorsManager",
    "SlerpMerge",
    "TaskArithmeticMerge",
    "TiesMerge",
    "TrainingCallback",
    "TrainingConfig",
    "UniversalArchitectureHandler",
    "__version__",
    "create_simple_dataset",
    "evaluate",
    "is_safetensors_available",
    "load_model_safe",
    "load_recipe",
    "plan_recipe",
    "push_mol_to_hf",
    "resolve_checkpoints",
    "run_merge",
    "safetensors_manager",
    "save_model_safe",
    "suggest_layers",
]

# Hidden from type checkers, which would otherwise believe in any `mol.anything`.
if not TYPE_CHECKING:
    _HOMES = {
        "mol._rust": ("__version__",),
        "mol.architecture": ("UniversalArchitectureHandler",),
        "mol.config": ("MergeConfig", "ModelReference", "load_recipe"),
        "mol.config.mol_config": ("MoLConfig",),
        "mol.core": (
            "MoLForCausalLM", "MoLForImageClassification", "MoLForMaskedLM", "MoLForSequenceClassification",
            "MoLForTokenClassification", "MoLMixture", "MoLRuntime", "suggest_layers",
        ),
        "mol.core.evaluation.evaluate": ("evaluate",),
        "mol.core.evaluation.scores": ("DomainScore", "Evaluation"),
        "mol.core.mol_runtime": ("push_mol_to_hf",),
        "mol.core.safetensors_io": ("is_safetensors_available", "load_model_safe", "save_model_safe"),
        "mol.errors": (
            "ArchitectureError", "CheckpointError", "ConfigError", "FusionError", "InternalError", "MergeCancelled",
            "MergeError", "MolError",
        ),
        "mol.merge.options": ("MergeOptions",),
        "mol.merge.opening": ("resolve_checkpoints",),
        "mol.merge.run": ("MergeReport", "plan_recipe", "run_merge"),
        "mol.merge_methods.base_merge": ("BaseMergeMethod", "PendingMerge"),
        "mol.merge_methods.methods": (
            "LinearMerge", "PassthroughMerge", "SlerpMerge", "TaskArithmeticMerge", "TiesMerge",
        ),
        "mol.training": ("MoLTrainer", "TrainingCallback", "TrainingConfig", "create_simple_dataset"),
        "mol.utils.safetensors_utils": ("SAFETENSORS_AVAILABLE", "SafeTensorsManager", "safetensors_manager"),
    }  # fmt: skip

    def __getattr__(name: str) -> object:
        from mol.later import find

        value = globals()[name] = find("mol", name, _HOMES)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

    # transformers' Auto classes are expected to know fused models, whichever is imported first; and neither is to load
    # the other. So AutoConfig is given stand-ins for their configs, which load them when they are used.
    _CONFIGS = "transformers.models.auto.configuration_auto"

    class _Later(type):
        def _real(cls) -> type:
            from importlib import import_module

            found = getattr(import_module("mol.core"), cls.__name__)
            import_module("mol.auto")
            return found

        def __getattr__(cls, name: str) -> object:
            return getattr(cls._real(), name)

        def __call__(cls, *args: object, **kwargs: object) -> object:
            return cls._real()(*args, **kwargs)

    def _register(configs: object) -> None:
        for kind, name in (("mol", "MoLModelConfig"), ("mol_mixture", "MoLMixtureConfig")):
            if kind not in configs.CONFIG_MAPPING:
                configs.CONFIG_MAPPING.register(kind, _Later(name, (), {"model_type": kind}))

    class _Transformers:
        """Registers the stand-ins when transformers has been imported as far as that takes."""

        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            if name != _CONFIGS:
                return None
            from importlib.machinery import PathFinder

            spec = PathFinder.find_spec(name, path, target)
            if spec is not None:
                run = spec.loader.exec_module

                def exec_module(module: object) -> None:
                    run(module)
                    _register(module)

                spec.loader.exec_module = exec_module
            return spec

    class _Missing:
        """Reports that modules which are not there yet will come; the last finder, so of no other module."""

        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name.startswith("mol.") and name != "mol.later":
                from mol.later import check_module

                check_module(name)

    if _CONFIGS in sys.modules:
        _register(sys.modules[_CONFIGS])
    sys.meta_path.insert(0, _Transformers)
    sys.meta_path.append(_Missing)
