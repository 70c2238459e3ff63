"""Rows of bench_fusion.py that train: a step of MoLTrainer against a plain loop over the same modules."""

from __future__ import annotations

import ctypes
import gc
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mol.config.mol_config import MoLConfig
from mol.core.mol_runtime import MoLRuntime
from mol.training import MoLTrainer, TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_models import Models

    Batch = dict[str, torch.Tensor]

RATE = 1e-4


def fusion_to_train(models: Models) -> MoLRuntime:
    """A Llama-like host whose every second layer has blocks of a narrower model against its own."""
    host, other = models.path("routed"), models.path("other")
    runtime = MoLRuntime(MoLConfig([host, other]))
    torch.manual_seed(0)
    for index in range(0, models.sizes.routed_layers, 2):
        runtime.add_layer([(host, index), (other, index)], index)
    return runtime


def step_of_trainer(models: Models, batch: Batch, *, checkpointing: bool = False) -> Callable[[], None]:
    """What makes a step of MoLTrainer."""
    config = TrainingConfig(
        learning_rate=RATE, router_learning_rate=RATE, warmup_steps=0, lr_scheduler_type="constant",
        use_gradient_checkpointing=checkpointing, output_dir=tempfile.gettempdir(),
    )  # fmt: skip
    trainer = MoLTrainer(fusion_to_train(models), config)

    def step() -> None:
        with torch.enable_grad():  # rounds are timed without
            trainer.train_step(batch)

    return step


def step_of_loop(models: Models, batch: Batch) -> Callable[[], None]:
    """What makes a step of a plain loop over the same modules, with the same optimiser, loss and clipping."""
    model: Any = fusion_to_train(models).as_causal_lm().train()
    parameters = [*model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)

    def step() -> None:
        with torch.enable_grad():
            loss = model(**batch, labels=batch["input_ids"]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return step


def peak_of(work: Callable[[], None]) -> float:
    """The bytes by which a process grows at most while it does something."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _memory("VmRSS")
    work()
    return _memory("VmHWM") - before


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
