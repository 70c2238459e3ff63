"""BestSoFar: the lowest loss of a run's evaluations, and for how many it has not fallen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class BestSoFar:
    """The lowest loss of a run's evaluations.

    Attributes:
        loss: the lowest; infinity before the first.
        evaluated: the step of the last evaluation, None before the first.
        without_gain: evaluations in a row without a lower loss.
    """

    def __init__(self) -> None:
        """Start before the first evaluation."""
        self.loss = math.inf
        self.evaluated: int | None = None
        self.without_gain = 0

    @classmethod
    def read(cls, progress: Mapping[str, Any]) -> BestSoFar:
        """Return what `progress` returned."""
        made, loss = cls(), progress["best_loss"]
        made.loss = math.inf if loss is None else loss
        made.without_gain, made.evaluated = progress["without_gain"], progress["evaluated"]
        return made

    def progress(self) -> dict[str, Any]:
        """Return all of it as JSON holds it, which has no infinity."""
        loss = None if math.isinf(self.loss) else self.loss
        return {"best_loss": loss, "without_gain": self.without_gain, "evaluated": self.evaluated}

    def see(self, loss: float, step: int, threshold: float) -> bool:
        """Add an evaluation, and return whether its loss is the lowest.

        Args:
            loss: of the evaluation.
            step: after which it was made.
            threshold: by how much a loss must be lower to count as a gain.
        """
        self.evaluated = step
        self.without_gain = 0 if loss < self.loss - threshold else self.without_gain + 1
        is_best = loss < self.loss
        if is_best:
            self.loss = loss
        return is_best
