"""Stepper: makes optimiser steps, each on one or several batches of all processes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mol.errors import FusionError
from mol.training.objective import NAMES, Objective
from mol.training.optimization import make_schedule, parameter_groups
from mol.training.state import restore_optimizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.training.config import TrainingConfig


class StepResult(NamedTuple):
    """What a step reports.

    Attributes:
        terms: of the loss, in the order of `NAMES`.
        norm: of all gradients together, before they were clipped.
        tokens: that no padding was, of all processes.
    """

    terms: torch.Tensor
    norm: torch.Tensor
    tokens: float


class Stepper:
    """Optimiser and schedule of an objective.

    Attributes:
        optimizer: as accelerate wraps it.
        scheduler: of both learning rates.
        rates: those of the last step, by parameter group.
    """

    def __init__(
        self,
        accelerator: Any,  # noqa: ANN401 - of accelerate
        objective: Objective,
        config: TrainingConfig,
        steps: int | None,
        *,
        move: bool,
    ) -> None:
        """Make optimiser and schedule; what is trained becomes float32.

        Args:
            accelerator: of accelerate.
            objective: what is minimised.
            config: of the training.
            steps: of the whole run; without any the rates are constant after the warm-up.
            move: whether to move the models to accelerate's device.
        """
        self._objective = objective
        self._config = config
        self._accelerator = accelerator
        self._parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        for parameter in self._parameters:
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()  # steps of 1e-4 are lost to 8 bits
        optimizer = torch.optim.AdamW(parameter_groups(objective.model.named_parameters(), config))
        self.scheduler = make_schedule(optimizer, config, steps)
        self._module, self.optimizer = accelerator.prepare(objective, optimizer, device_placement=[move, True])
        self.rates: dict[str, float] = {}

    def go_on(self, state: Mapping[str, Mapping[str, torch.Tensor]], step: int) -> None:
        """Continue after so many steps, with what the optimiser kept then."""
        restore_optimizer(self.optimizer.optimizer, state)
        schedule = self.scheduler
        schedule.last_epoch, schedule._step_count = step, step + 1
        schedule._last_lr = [
            base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, schedule._last_lr, strict=True):
            group["lr"] = rate

    def step(self, given: Sequence[Any], number: int) -> StepResult:
        """Make a step.

        Args:
            given: the batches of this process.
            number: of the step, in messages.

        Raises:
            FusionError: loss or gradients are not finite; the step was not made.
        """
        batches = [self._objective.prepared(batch) for batch in given]
        self._objective.start_step()
        counts = sum_over_processes(
            self._accelerator, torch.stack([self._objective.counts(batch) for batch in batches]).sum(0)
        )
        labels, tokens = counts.clamp(min=1.0)
        self._module.train()
        total = torch.zeros(len(NAMES), device=self._accelerator.device)
        for index, batch in enumerate(batches, 1):
            with nullcontext() if index == len(batches) else self._accelerator.no_sync(self._module):
                loss, terms = self._module(batch, labels, tokens)
                # Gradients of processes are averaged, and the losses here are parts of a sum.
                self._accelerator.backward(loss * self._accelerator.num_processes)
            total += terms.to(total.device)
        norm = self._accelerator.clip_grad_norm_(self._parameters, self._config.gradient_clip_norm or math.inf)
        if not bool(norm.isfinite()):
            self.optimizer.zero_grad()
            raise FusionError(
                f"step {number}: the gradients are not finite (loss {total[0].item():g}), so the step was not made; "
                "lower the learning rates, look at the batch, or compute in float32"
            )
        self.rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return StepResult(sum_over_processes(self._accelerator, total), norm, tokens.item())

    def metrics(self, terms: torch.Tensor, norm: torch.Tensor) -> dict[str, float]:
        """Return terms of the loss by name, with the norm of the gradients and the learning rates of the last step."""
        rates = self.rates
        metrics = {**self._objective.named(terms), "grad_norm": norm.item()}
        metrics["learning_rate"] = rates.get("adapters", rates.get("adapters_no_decay", rates.get("routers", 0.0)))
        return metrics | ({"router_learning_rate": rates["routers"]} if "routers" in rates else {})


def sum_over_processes(accelerator: Any, tensor: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - of accelerate
    """Return the sum of a tensor over all processes."""
    if accelerator.num_processes == 1:
        return tensor
    summed: torch.Tensor = accelerator.reduce(tensor.to(accelerator.device), "sum")
    return summed.to(tensor.device)
