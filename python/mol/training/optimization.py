"""Parameter groups, optimiser and schedule of a training run."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Final

from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from mol.training.config import TrainingConfig

_log: Final = logging.getLogger("mol")


def parameter_groups(named: Iterable[tuple[str, torch.nn.Parameter]], config: TrainingConfig) -> list[dict[str, Any]]:
    """Return the groups of an optimiser: matrices of adapters, their other parameters, and routers.

    Weight decay is for the matrices of adapters alone: a norm's weight is 1 at rest and not 0, and a router that decays
    forgets its choice.

    Raises:
        ConfigError: there is nothing to train.
    """
    found: dict[str, list[tuple[str, torch.nn.Parameter]]] = {"adapters": [], "adapters_no_decay": [], "routers": []}
    for name, parameter in named:
        if parameter.requires_grad:
            adapter = "adapters" if parameter.dim() > 1 else "adapters_no_decay"
            found["routers" if ".router." in name else adapter].append((name, parameter))
    if not any(found.values()):
        raise ConfigError(
            "there is nothing to train: add layers with add_layer; one whose only expert is the host's own block has "
            "neither adapters nor a router"
        )
    rates = {"routers": config.router_learning_rate}
    decays = {"adapters": config.weight_decay}
    return [
        {
            "name": group,
            "names": [name for name, _ in members],
            "params": [parameter for _, parameter in members],
            "lr": rates.get(group, config.learning_rate),
            "weight_decay": decays.get(group, 0.0),
        }
        for group, members in found.items()
        if members
    ]


def steps_of_run(config: TrainingConfig, batches: int | None) -> int | None:
    """Return the number of steps of a run, None if nothing says.

    Args:
        config: of the training.
        batches: of one process in a pass over the data, None if these have no length.

    Raises:
        ConfigError: there is no batch, or the schedule has to know the last step.
    """
    if batches == 0:
        raise ConfigError("there are no data: not a single batch")
    if batches is None and config.max_steps is None and config.lr_scheduler_type != "constant":
        raise ConfigError(
            f'lr_scheduler_type "{config.lr_scheduler_type}" ends at the last step, and data without a length do not '
            'say which that is: set max_steps, or lr_scheduler_type="constant"'
        )
    if batches is None:
        return config.max_steps
    steps = math.ceil(batches / config.gradient_accumulation_steps) * config.max_epochs
    return steps if config.max_steps is None else min(steps, config.max_steps)


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps: int | None
) -> torch.optim.lr_scheduler.LambdaLR:
    """Make the schedule of the learning rates.

    Args:
        optimizer: whose rates it sets.
        config: names it.
        steps: of the whole run; if that is not known, None, the rates are constant after the warm-up.
    """
    from transformers import get_scheduler

    kind = config.lr_scheduler_type if steps is not None else "constant"
    warmup = config.warmup_steps
    if steps is not None and warmup >= max(steps, 1):
        warmup = steps // 10
        shorter = f"the learning rates rise over the first {warmup} instead" if warmup else "there is no warm-up"
        _log.warning("warmup_steps is %d, and the run has %d steps: %s", config.warmup_steps, steps, shorter)
    name = "constant_with_warmup" if kind == "constant" else kind
    schedule: torch.optim.lr_scheduler.LambdaLR = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps
    )
    return schedule
