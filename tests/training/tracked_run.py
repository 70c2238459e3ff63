"""A run that a tracker follows, as a user starts it: for tests that look at what the tracker wrote."""

from __future__ import annotations

import os
import sys
from typing import Any

from mol import MoLConfig, MoLRuntime
from mol.training import MoLTrainer, TrainingConfig
from tests.training.toolkit import rows_of


def main(models: str, out: str, tracker: str) -> None:
    """Train in six steps, with a report of every second and an evaluation of every third."""
    os.chdir(models)
    mol = MoLRuntime(MoLConfig(models=["gpt2", "llama"]))
    mol.add_layer([("gpt2", 1), ("llama", 1)], 1)
    wanted: dict[str, Any] = {"use_wandb": True} if tracker == "wandb" else {"report_to": [tracker]}
    config = TrainingConfig(
        batch_size=2, max_steps=6, warmup_steps=0, logging_steps=2, eval_steps=3, save_steps=None, output_dir=out,
        run_name="first", learning_rate=0.5, lr_scheduler_type="constant", **wanted,
    )  # fmt: skip
    MoLTrainer(mol, config).train(rows_of(*[6] * 12), rows_of(5))


if __name__ == "__main__":
    main(*sys.argv[1:])
