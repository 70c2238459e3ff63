"""One of the processes of a training run: for tests that start several."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mol import MoLConfig, MoLRuntime
from mol.training import MoLTrainer, TrainingCallback, TrainingConfig
from tests.training.conftest import still
from tests.training.toolkit import rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS = {
    "dense": {},
    "top_1": {"top_k_experts": 1, "router_type": "token"},
    "bias": {"top_k_experts": 1, "router_type": "token", "balance": "bias"},
}


class Losses(TrainingCallback):
    """Keeps what each step reports."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, float]] = []

    def on_step_end(self, trainer: MoLTrainer, metrics: Mapping[str, float]) -> None:
        self.seen.append(metrics)


def main(models: str, out: str, processes: str, kind: str) -> None:
    """Train on batches of eight rows, split over the processes, from the latest checkpoint if there is one."""
    os.chdir(models)
    torch.manual_seed(0)
    mol = MoLRuntime(MoLConfig(models=["gpt2", "llama"], **KINDS[kind])).eval()  # type: ignore[arg-type]
    for layer in (0, 2):
        mol.add_layer([("gpt2", layer), ("llama", layer)], layer)
    still(mol)
    losses = Losses()
    config = TrainingConfig(
        learning_rate=1e-3, router_learning_rate=1e-3, load_balancing_coeff=0.5, entropy_penalty_coeff=0.1,
        bias_update_rate=0.003, max_steps=5,
        max_epochs=2, warmup_steps=0, eval_steps=None, save_steps=2, batch_size=8 // int(processes), output_dir=out,
    )  # fmt: skip
    trainer = MoLTrainer(mol, config, callbacks=[losses])
    trainer.train(rows_of(*[5, 9, 7] * 8), resume_from_checkpoint=True)
    found = {
        "losses": [one["total_loss"] for one in losses.seen],
        "entropies": [one["router_entropy"] for one in losses.seen],
        "balances": [one["load_balance_loss"] for one in losses.seen],
        "eval": trainer.evaluate(rows_of(6, 4, 8))["eval_lm_loss"],  # three rows, unevenly shared
    }
    if trainer.accelerator.is_main_process:
        (Path(out) / "said.json").write_text(json.dumps(found))
    trainer.accelerator.end_training()  # else a process may end while gloo's threads still run, which aborts it


if __name__ == "__main__":
    main(*sys.argv[1:])
