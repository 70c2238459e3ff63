"""What routers are trained by next to the loss of the head, over the tokens of all processes.

A term is a mean over tokens, or a product of such means. A process knows sums over its own tokens alone; with the sums
of all processes held constant where a term is not linear in its own, the terms of the processes add up to that of the
whole batch, and so do their gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from mol.core.losses import choices_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mol.core.mol_layer import Routing

    Reduce = Callable[[torch.Tensor], torch.Tensor]
    """Returns the sum of a tensor over all processes."""

TERMS: Final = ("load_balance_loss", "router_entropy", "z_loss", "mutual_information")


class _Sums(NamedTuple):
    """Sums over the tokens of a layer that are no padding; all but the first and the last have gradients.

    Attributes:
        choices: (E,), how many chose each expert, see `mol.core.losses.compute_load_balancing_loss`.
        probabilities: (E,).
        entropy: of the choices, ().
        z: of the squared log-partition, ().
        tokens: their number, ().
    """

    choices: torch.Tensor
    probabilities: torch.Tensor
    entropy: torch.Tensor
    z: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def of(cls, weights: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor) -> _Sums:
        """Sum over a layer's tokens: weights and logits (B, T, E), mask (B, T)."""
        kept = mask.to(weights.device).bool() & weights.detach().gt(0).any(-1)
        shown = kept[..., None]
        log_z = logits.float().masked_fill(~shown, 0.0).logsumexp(-1)
        log_p = logits.float().masked_fill(~shown, 0.0).log_softmax(-1)
        p = log_p.exp() * shown
        return cls(
            (choices_of(weights) * shown).flatten(0, 1).sum(0),
            p.flatten(0, 1).sum(0),
            -(p * log_p).sum(),
            (log_z.square() * kept).sum(),
            kept.sum(),
        )


def routing_terms(
    routings: Sequence[Routing], mask: torch.Tensor, tokens: torch.Tensor | float, reduce: Reduce
) -> torch.Tensor:
    """Return this process's part of the terms (4,), in the order of `TERMS`, each a mean over the layers with a choice.

    A batch counts by its share in `tokens`: with those of a whole optimiser step, the terms of its batches add up.

    Args:
        routings: of the fused layers in one forward.
        mask: (B, T), 0 for padding.
        tokens: what the tokens of this batch are a share of.
        reduce: sums over processes.
    """
    sums = [
        _Sums.of(weights, logits, mask if mask.shape == weights.shape[:2] else weights.new_ones(weights.shape[:2]))
        for weights, logits in routings
        if logits is not None
    ]
    if not sums:
        return torch.zeros(len(TERMS), device=mask.device)
    device = sums[0].tokens.device
    # One message for all layers.
    own = torch.cat([torch.cat([one.choices, one.probabilities.detach(), one.tokens[None]]).to(device) for one in sums])
    whole = torch.split(reduce(own), [2 * len(one.choices) + 1 for one in sums])
    terms = [_terms(one, of_all.to(one.tokens.device)).to(device) for one, of_all in zip(sums, whole, strict=True)]
    return torch.stack(terms).mean(0) / tokens


def _terms(own: _Sums, of_all: torch.Tensor) -> torch.Tensor:
    experts = len(own.choices)
    choices, probabilities, tokens = of_all[:experts], of_all[experts:-1], of_all[-1].clamp(min=1.0)
    balance = experts * (choices / tokens * own.probabilities).sum()
    log_mean = (probabilities / tokens).clamp(min=torch.finfo(torch.float32).tiny).log()
    information = -(log_mean * own.probabilities).sum() - own.entropy
    return torch.stack([balance, own.entropy, own.z, information])
