"""mol: merge language model checkpoints natively, in constant memory, or run blocks of several as one model.

Everything here is imported on first use, so that `import mol` costs nothing and a merge never loads torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mol.config import MergeConfig
    from mol.config.mol_config import MoLConfig
    from mol.core import MoLForCausalLM, MoLMixture, MoLRuntime, suggest_layers
    from mol.errors import ArchitectureError, CheckpointError, ConfigError, MergeCancelled, MergeError, MolError
    from mol.merge.options import MergeOptions
    from mol.merge.run import MergeReport, plan_recipe, run_merge
    from mol.merge_methods.base_merge import BaseMergeMethod, MergedModel
    from mol.merge_methods.methods import LinearMerge, PassthroughMerge, SlerpMerge, TaskArithmeticMerge, TiesMerge

    __version__: str

__all__ = [
    "ArchitectureError",
    "BaseMergeMethod",
    "CheckpointError",
    "ConfigError",
    "LinearMerge",
    "MergeCancelled",
    "MergeConfig",
    "MergeError",
    "MergeOptions",
    "MergeReport",
    "MergedModel",
    "MoLConfig",
    "MoLForCausalLM",
    "MoLMixture",
    "MoLRuntime",
    "MolError",
    "PassthroughMerge",
    "SlerpMerge",
    "TaskArithmeticMerge",
    "TiesMerge",
    "__version__",
    "plan_recipe",
    "run_merge",
    "suggest_layers",
]

# Hidden from type checkers, which would otherwise believe in any `mol.anything`.
if not TYPE_CHECKING:
    _HOMES = {
        "mol.config": ("MergeConfig",),
        "mol.config.mol_config": ("MoLConfig",),
        "mol.core": ("MoLForCausalLM", "MoLMixture", "MoLRuntime", "suggest_layers"),
        "mol.errors": (
            "ArchitectureError", "CheckpointError", "ConfigError", "MergeCancelled", "MergeError", "MolError",
        ),
        "mol.merge.options": ("MergeOptions",),
        "mol.merge.run": ("MergeReport", "plan_recipe", "run_merge"),
        "mol.merge_methods.base_merge": ("BaseMergeMethod", "MergedModel"),
        "mol.merge_methods.methods": (
            "LinearMerge", "PassthroughMerge", "SlerpMerge", "TaskArithmeticMerge", "TiesMerge",
        ),
    }  # fmt: skip

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name == "__version__":
            value = import_module("mol._rust").__version__
        else:
            home = next((module for module, names in _HOMES.items() if name in names), None)
            if home is None:
                raise AttributeError(f"module 'mol' has no attribute {name!r}")
            value = getattr(import_module(home), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

    if {"torch", "transformers"} <= sys.modules.keys():  # whose Auto classes are expected to know fused models
        from importlib import import_module

        import_module("mol.auto")
