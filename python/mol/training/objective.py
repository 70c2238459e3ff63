"""Objective: the loss of one batch as a module, so that it runs inside of what accelerate wraps around a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from mol.core.models.heads import CAUSAL_LM
from mol.errors import ConfigError
from mol.training.routing_terms import TERMS, routing_terms
from mol.training.supervision import domain_term

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.core.pretrained.fused_model import FusedModel
    from mol.training.config import TrainingConfig
    from mol.training.routing_terms import Reduce
    from mol.training.supervision import Teachers

ADDED: Final = (*TERMS, "domain_loss", "distillation_loss")
"""The terms next to the loss of the head, in the order of their coefficients."""
NAMES: Final = ("total_loss", "lm_loss", *ADDED)
"""What `Objective.forward` returns, in this order."""


class Objective(nn.Module):
    """Computes this process's part of the loss of an optimiser step, for one of its batches.

    Attributes:
        model: the fused model; its own loss of the routers is left out.
        coefficients: of the terms next to the loss of the head, by name.
    """

    def __init__(
        self, model: FusedModel, config: TrainingConfig, reduce: Reduce, teachers: Teachers | None = None
    ) -> None:
        """Take the coefficients that a config leaves open from the fusion's own.

        Args:
            model: the fused model.
            config: of the training.
            reduce: returns the sum of a tensor over all processes.
            teachers: of the rows of their domains, None for no distillation.
        """
        super().__init__()
        self.model = model
        model.adds_routing_loss = False
        own = model.runtime.config
        self.coefficients = {
            "load_balance_loss": _first(config.load_balancing_coeff, own.balance_loss_coeff),
            "router_entropy": _first(config.entropy_penalty_coeff, own.entropy_penalty_coeff),
            "z_loss": config.z_loss_coeff,
            "mutual_information": -config.mutual_information_coeff,  # the more the better
            "domain_loss": config.domain_loss_coeff,
            "distillation_loss": config.distillation_coeff if teachers is not None else 0.0,
        }
        self._reduce = reduce
        self._teachers = teachers
        self._sums: torch.Tensor | None = None

    def start_step(self) -> None:
        """Begin an optimiser step: the batches from now on are of another one."""
        self._sums = None

    def forward(
        self, batch: Mapping[str, torch.Tensor], labels: torch.Tensor | float, tokens: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss (), with its gradient, and its terms, detached, in the order of `NAMES`.

        Both are this batch's part, by its shares in the labels and tokens of the step: the parts of all batches of all
        processes add up to the loss of the step.

        Args:
            batch: from `prepared`.
            labels: the number of labels of the step that count.
            tokens: the number of tokens of the step that are no padding.
        """
        inputs = {name: value for name, value in batch.items() if name != "domains"}
        output = self.model(**inputs, num_items_in_batch=labels)
        loss: torch.Tensor = output.loss.float()
        mask, domains = self.mask_of(batch), batch.get("domains")
        # Processes may have unequal numbers of batches to evaluate, so there nobody waits for the others.
        reduce = self._of_step if self.training else _itself
        routings = list(self.model.routings.values())
        more = [loss.new_zeros(()), loss.new_zeros(())]
        if domains is not None and self.coefficients["domain_loss"]:
            more[0] = domain_term(routings, mask, domains, tokens).to(loss.device)
        if domains is not None and self._teachers is not None and self.coefficients["distillation_loss"]:
            more[1] = self._teachers.term(output.logits, inputs, domains, labels).to(loss.device)
        terms = torch.cat([routing_terms(routings, mask, tokens, reduce).to(loss.device), torch.stack(more)])
        total = loss + (terms * terms.new_tensor([self.coefficients[name] for name in ADDED])).sum()
        return total, torch.cat([torch.stack([total, loss]), terms]).detach()

    def prepared(self, batch: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - whatever a loader yields
        """Return a batch with labels, of which those at padding do not count; in a causal model nor do those after it.

        The token before a label predicts it, and before the first token of a row that is padded on the left there is
        none. A causal model without labels predicts its tokens. Labels of a whole text stay as they are.

        Raises:
            ConfigError: it is no dictionary of tensors, or has no labels.
        """
        if not hasattr(batch, "keys"):
            raise ConfigError(
                f"a batch is a {type(batch).__name__}, wanted a dictionary with `input_ids` (B, T), `attention_mask` "
                "and `labels`"
            )
        given = {name: batch[name] for name in batch.keys()}  # noqa: SIM118 - a BatchEncoding is no mapping
        others = [name for name, value in given.items() if not isinstance(value, torch.Tensor)]
        if others:
            raise ConfigError(f"{', '.join(others)} of a batch: no tensor; a tokenizer takes return_tensors='pt'")
        is_causal = self.model.head is CAUSAL_LM
        labels = given.get("labels", given.get("input_ids") if is_causal else None)
        if labels is None:
            wanted = "`input_ids` or `labels`" if is_causal else "`labels`"
            raise ConfigError(f"a batch has {', '.join(given) or 'nothing'}, wanted {wanted}")
        mask = given.get("attention_mask")
        if mask is not None and labels.shape == mask.shape:
            counted = mask.ne(0)
            if is_causal:
                counted = counted & torch.cat([counted[:, :1], counted[:, :-1]], 1)
            labels = labels.masked_fill(~counted, -100)
        return {**given, "labels": labels}

    def named(self, terms: torch.Tensor) -> dict[str, float]:
        """Return terms by name, those without a coefficient left out, and the `entropy_penalty`."""
        found = dict(zip(NAMES, terms.tolist(), strict=True))
        kept = ("total_loss", "lm_loss", "load_balance_loss", "router_entropy")
        penalty = self.coefficients["router_entropy"] * found["router_entropy"]
        return {
            **{name: value for name, value in found.items() if name in kept or self.coefficients[name]},
            "entropy_penalty": penalty,
        }

    def mask_of(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the mask of a batch, all ones if it has none."""
        mask = batch.get("attention_mask")
        if mask is not None:
            return mask
        ids = batch.get("input_ids")
        return torch.ones_like(ids) if ids is not None else batch["labels"].new_ones(len(batch["labels"]), 1)

    def counts(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the number of labels of a batch that count, and of tokens that are no padding (2,), float64."""
        mask = self.mask_of(batch)
        labels = self.model.count_labels(batch["labels"], mask)
        return torch.stack([labels, mask.ne(0).sum().to(labels.device)]).double()

    def _of_step(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes and over the batches of the step so far."""
        whole = self._reduce(tensor)
        self._sums = whole if self._sums is None else self._sums + whole
        return self._sums


def _first(given: float | None, default: float) -> float:
    return default if given is None else given


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
