"""Merging: a recipe and checkpoints make a plan, and the plan makes a checkpoint."""

from mol.merge.opening import resolve_checkpoints
from mol.merge.options import MergeOptions
from mol.merge.run import MergeReport, plan_recipe, run_merge

__all__ = ["MergeOptions", "MergeReport", "plan_recipe", "resolve_checkpoints", "run_merge"]
