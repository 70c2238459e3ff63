"""One final class per method that has one; the table of methods describes them, and they differ only in the plan."""

# ruff: noqa: D101 - their docstrings come from the table

from __future__ import annotations

from typing import ClassVar, final

from mol.merge_methods.base_merge import BaseMergeMethod


@final
class LinearMerge(BaseMergeMethod):
    method: ClassVar[str] = "linear"


@final
class SlerpMerge(BaseMergeMethod):
    method: ClassVar[str] = "slerp"


@final
class TaskArithmeticMerge(BaseMergeMethod):
    method: ClassVar[str] = "task_arithmetic"


@final
class TiesMerge(BaseMergeMethod):
    method: ClassVar[str] = "ties"


@final
class PassthroughMerge(BaseMergeMethod):
    method: ClassVar[str] = "passthrough"
