"""Merging: a recipe and checkpoints make a plan, and the plan makes a checkpoint."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mol.merge.opening import resolve_checkpoints
    from mol.merge.options import MergeOptions
    from mol.merge.run import MergeReport, plan_recipe, run_merge

__all__ = ["MergeOptions", "MergeReport", "plan_recipe", "resolve_checkpoints", "run_merge"]

# On first use: every file of the package is imported through here, and few need all of it.
if not TYPE_CHECKING:
    _HOMES = {
        "mol.merge.opening": ("resolve_checkpoints",),
        "mol.merge.options": ("MergeOptions",),
        "mol.merge.run": ("MergeReport", "plan_recipe", "run_merge"),
    }

    def __getattr__(name: str) -> object:
        from mol.later import find

        return find("mol.merge", name, _HOMES)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
