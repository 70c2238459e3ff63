"""Evaluates an objective on data, without a trace in the training around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mol.errors import ConfigError
from mol.training.objective import NAMES
from mol.training.state import random_state, restore_random
from mol.training.stepper import sum_over_processes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mol.training.objective import Objective


@torch.no_grad()
def evaluate(accelerator: Any, objective: Objective, batches: Iterable[Any]) -> dict[str, float]:  # noqa: ANN401
    """Return means over all tokens of this process's batches and those of the others; see `MoLTrainer.evaluate`.

    Raises:
        ConfigError: there is no label to count.
    """
    before, random = objective.model.training, random_state()
    objective.eval()
    try:
        sums = torch.zeros(len(NAMES) + 2, dtype=torch.float64, device=accelerator.device)
        for given in batches:
            batch = objective.prepared(given)
            with accelerator.autocast():
                _, terms = objective(batch, 1.0, 1.0)
            sums += torch.cat([terms.double(), objective.counts(batch).to(terms.device)]).to(sums.device)
    finally:
        objective.train(before)
        restore_random(random)
    *totals, labels, tokens = sum_over_processes(accelerator, sums).tolist()
    if not labels:
        raise ConfigError("the data to evaluate on have no label that counts")
    found = dict(zip(NAMES, totals, strict=True))
    loss = found["lm_loss"] / labels
    others = (found["total_loss"] - found["lm_loss"]) / tokens
    entropy = found["router_entropy"] / tokens
    return {"eval_loss": loss + others, "eval_lm_loss": loss, "eval_router_entropy": entropy}
