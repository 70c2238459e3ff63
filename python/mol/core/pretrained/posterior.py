"""The posterior over the models of a mixture, given the tokens so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass
class Evidence:
    """The state of the posterior after some tokens.

    Attributes:
        total: (B, E), float64, log-probability of the tokens by each model.
        last: (B, E, V), float64, log-probabilities of the token that comes next.
        started: (B, 1), whether the row has a token, before which there is no `last`.
    """

    total: torch.Tensor
    last: torch.Tensor
    started: torch.Tensor

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        for name, tensor in list(vars(self).items()):
            setattr(self, name, tensor.index_select(0, rows.to(tensor.device)))


def posterior(
    logits: list[torch.Tensor], input_ids: torch.Tensor, mask: torch.Tensor, state: Evidence | None
) -> tuple[torch.Tensor, Evidence]:
    """Return log weights (B, T, E), float64, by the probabilities of the tokens so far, and the state after them."""
    rows = torch.arange(len(input_ids), device=mask.device)[:, None]
    columns = torch.arange(mask.shape[1], device=mask.device)
    latest = torch.where(mask, columns, -1).cummax(1).values
    before = functional.pad(latest, (1, -1), value=-1)  # the token that predicted each
    started = mask.new_zeros(len(mask), 1) if state is None else state.started
    scores, last = [], []
    for number, each in enumerate(logits):
        log_p = each.double().log_softmax(-1)
        score = log_p[rows, before.clamp(min=0), input_ids].masked_fill(before < 0, 0.0)
        ahead = log_p[rows, latest[:, -1:].clamp(min=0)][:, 0]
        if state is not None:
            score = torch.where((before < 0) & started, state.last[:, number].gather(1, input_ids), score)
            ahead = torch.where(latest[:, -1:] < 0, state.last[:, number], ahead)
        scores.append(score.masked_fill(~mask, 0.0).cumsum(1))
        last.append(ahead)
    total = torch.stack(scores, -1)
    if state is not None:
        total = total + state.total[:, None]
    after = Evidence(total[:, -1], torch.stack(last, 1), started | mask.any(1, keepdim=True))
    return total.log_softmax(-1), after
