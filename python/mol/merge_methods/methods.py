"""One final class a method; what they do differs only in the plan."""

from __future__ import annotations

from typing import ClassVar, final

from mol.merge_methods.base_merge import BaseMergeMethod


@final
class LinearMerge(BaseMergeMethod):
    """Weighted average of models."""

    method: ClassVar[str] = "linear"


@final
class SlerpMerge(BaseMergeMethod):
    """Spherical interpolation from the base (the first model unless named) to another model."""

    method: ClassVar[str] = "slerp"


@final
class TaskArithmeticMerge(BaseMergeMethod):
    """The base plus weighted differences of fine-tunes from it; negative weights take a skill away."""

    method: ClassVar[str] = "task_arithmetic"


@final
class TiesMerge(BaseMergeMethod):
    """The base plus differences that were trimmed, agree in sign, and are averaged where they do."""

    method: ClassVar[str] = "ties"


@final
class PassthroughMerge(BaseMergeMethod):
    """Layers taken as they are, from one model or stacked from several."""

    method: ClassVar[str] = "passthrough"
