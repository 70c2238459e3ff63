"""A run that saves after each step and continues from what there is: for tests that kill it."""

from __future__ import annotations

import os
import sys

import torch

from mol import MoLConfig, MoLRuntime
from mol.training import MoLTrainer, TrainingConfig
from tests.training.test_resume import NOISY, ROWS, RUN


def main(models: str, out: str) -> None:
    """Train the fusion of the tests, with models of a directory, into another."""
    os.chdir(models)
    torch.manual_seed(0)
    mol = MoLRuntime(MoLConfig(models=["gpt2", "llama"], **NOISY)).eval()  # type: ignore[arg-type]
    for layer in (0, 2):
        mol.add_layer([("gpt2", layer), ("llama", layer)], layer)
    config = TrainingConfig(**{**RUN, "eval_steps": None, "save_steps": 1, "output_dir": out})
    MoLTrainer(mol, config).train(ROWS, resume_from_checkpoint=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
