"""The merge methods as classes, for those who build a merge in Python."""

from mol.merge_methods.base_merge import BaseMergeMethod, MergeConfig, PendingMerge
from mol.merge_methods.methods import LinearMerge, PassthroughMerge, SlerpMerge, TaskArithmeticMerge, TiesMerge

__all__ = [
    "BaseMergeMethod",
    "LinearMerge",
    "MergeConfig",
    "PassthroughMerge",
    "PendingMerge",
    "SlerpMerge",
    "TaskArithmeticMerge",
    "TiesMerge",
]
