"""TrainingCallback: what a program may do while a trainer runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class TrainingCallback:
    """A base whose methods do nothing; each is called in every process, after the trainer's own work.

    A method may set `trainer.should_stop = True`: training then ends after the current step, with a final checkpoint.
    """

    def on_train_begin(self, trainer: Any) -> None:  # noqa: ANN401 - a MoLTrainer
        """Run before the first step."""

    def on_step_end(self, trainer: Any, metrics: Mapping[str, float]) -> None:  # noqa: ANN401 - a MoLTrainer
        """Run after each optimiser step.

        Args:
            trainer: after the step; `global_step` counts it.
            metrics: as `MoLTrainer.train_step` returns them.
        """

    def on_evaluate(self, trainer: Any, metrics: Mapping[str, float]) -> None:  # noqa: ANN401 - a MoLTrainer
        """Run after each evaluation, with what `MoLTrainer.evaluate` returned."""

    def on_save(self, trainer: Any, path: Path) -> None:  # noqa: ANN401 - a MoLTrainer
        """Run after a checkpoint was written."""

    def on_train_end(self, trainer: Any) -> None:  # noqa: ANN401 - a MoLTrainer
        """Run after the last step and the final checkpoint."""
