"""The loss of one batch among the several that one step of an optimiser adds up, as transformers' Trainer wants it."""

from __future__ import annotations

from typing import Any

import torch

from mol.errors import FusionError


def share_of(labels: torch.Tensor, num_items: torch.Tensor | int, *, shifted: bool) -> torch.Tensor:
    """Return which part of the labels of a whole step these are, so that the means of its batches add up to its mean.

    Args:
        labels: (B, ...), -100 for what does not count.
        num_items: number of labels of the step that count.
        shifted: the first label of each row is predicted by nothing.
    """
    counted = (labels[..., 1:] if shifted else labels).ne(-100).sum()
    return counted / (num_items.to(counted.device) if isinstance(num_items, torch.Tensor) else num_items)


def weigh(loss: torch.Tensor, share: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Weigh the mean loss of a batch by its share; without a label that counts that mean is NaN, and adds nothing."""
    if not share.any():
        return logits.float().sum() * 0.0
    return loss * share.to(loss.device)


def train_beside(
    logits: torch.Tensor, loss: torch.Tensor, mask: torch.Tensor, num_items: torch.Tensor | int
) -> torch.Tensor:
    """Have a loss trained together with whatever the caller makes of the logits, which stay what they are.

    Trainer smooths labels by itself: it keeps them from the model and looks at the logits alone. As many labels count
    as there are tokens, as far as a model can know; of rows that are labelled in part each batch counts for more.

    Args:
        logits: (B, T, V).
        loss: what is to be trained beside, a scalar.
        mask: (B, T), 0 for padding.
        num_items: number of labels of the whole step that count.

    Raises:
        FusionError: gradients are scaled for float16, by a factor that no model knows.
    """
    device = logits.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        raise FusionError(
            "label smoothing in fp16 would lose the losses of the routers: train in bf16, or set to 0 either "
            "label_smoothing_factor or both load_balancing_coeff and entropy_penalty_coeff"
        )
    share = share_of(mask.masked_fill(mask == 0, -100), num_items, shifted=True).clamp(max=1.0)
    beside: torch.Tensor = _Beside.apply(logits, loss.to(logits.device) * share.to(logits.device))
    return beside


class _Beside(torch.autograd.Function):
    """Hands logits on; a gradient that comes back to them goes to a loss too, whose own is 1."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - torch's
        ctx.one = torch.ones_like(loss)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401 - torch's
        return gradient, ctx.one
