"""The loss of one batch of the several that an optimiser step accumulates, as transformers' Trainer expects it."""

from __future__ import annotations

from typing import Any

import torch

from mol.errors import FusionError


def share_of(labels: torch.Tensor, num_items: torch.Tensor | int, *, shifted: bool) -> torch.Tensor:
    """Return the share of these labels in those of a whole step, so that the weighted means of its batches add up.

    Args:
        labels: (B, ...), -100 for what does not count.
        num_items: number of labels of the step that count.
        shifted: the first label of each row is predicted by nothing.
    """
    counted = (labels[..., 1:] if shifted else labels).ne(-100).sum()
    return counted / (num_items.to(counted.device) if isinstance(num_items, torch.Tensor) else num_items)


def weigh(loss: torch.Tensor, share: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of a batch times its share; without a label that counts the mean is NaN, and adds 0."""
    if not share.any():
        return logits.float().sum() * 0.0
    return loss * share.to(loss.device)


def train_with(
    logits: torch.Tensor, loss: torch.Tensor, mask: torch.Tensor, num_items: torch.Tensor | int
) -> torch.Tensor:
    """Return logits, unchanged, whose gradient also trains a loss, whatever loss the caller computes from them.

    Trainer smooths labels itself: it keeps them from the model and uses the logits alone. The model has to assume that
    all tokens are labels; batches of partly labelled rows then count for more.

    Args:
        logits: (B, T, V).
        loss: to be trained too, a scalar.
        mask: (B, T), 0 for padding.
        num_items: number of labels of the whole step that count.

    Raises:
        FusionError: gradients are scaled for float16, by a factor unknown to the model.
    """
    device = logits.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        raise FusionError(
            "label smoothing in fp16 would lose the losses of the routers: train in bf16, or set to 0 either "
            "label_smoothing_factor or both load_balancing_coeff and entropy_penalty_coeff"
        )
    share = share_of(mask.masked_fill(mask == 0, -100), num_items, shifted=True).clamp(max=1.0)
    result: torch.Tensor = _TrainWith.apply(logits, loss.to(logits.device) * share.to(logits.device))
    return result


class _TrainWith(torch.autograd.Function):
    """Passes logits on; when a gradient comes back to them the loss gets the gradient 1."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - torch's
        ctx.one = torch.ones_like(loss)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401 - torch's
        return gradient, ctx.one
