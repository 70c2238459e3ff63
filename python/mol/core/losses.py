"""Losses of routers next to that of the task: differentiable, in float32, over the tokens that are no padding.

All take (..., E) and a mask of the leading axes, 1 for a token that counts; the runtime passes (B, T, E) and (B, T).
Without any token they are 0. Logits are those that a router returns: their softmax is its choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable


def compute_router_entropy(logits: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean over tokens of H(p) = -sum_e p_e log p_e, in nats: 0 for a sure choice, log E for none.

    Added to a loss it sharpens the choice of each token, subtracted it keeps it open.

    Args:
        logits: (..., E).
        attention_mask: (...), 0 for padding.

    Raises:
        ConfigError: the mask has another shape.
    """
    logits, kept = _masked(logits, attention_mask)
    return _mean(_entropy(logits.log_softmax(-1)), kept)


def compute_mutual_information(logits: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return H(mean p) - mean H(p), in nats: the information of a token about its expert, 0 to log E.

    It is large if each token is sure and all experts are used alike, so subtracting it from a loss favours both.

    Args:
        logits: (..., E).
        attention_mask: (...), 0 for padding.

    Raises:
        ConfigError: the mask has another shape.
    """
    logits, kept = _masked(logits, attention_mask)
    log_p = logits.log_softmax(-1)
    mean = _mean(log_p.exp(), kept)
    # Without any token the mean is 0 everywhere; 0 log 0 counts as 0.
    return _entropy(mean.clamp(min=torch.finfo(torch.float32).tiny).log()) - _mean(_entropy(log_p), kept)


def compute_router_z_loss(logits: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean over tokens of (log sum_e exp z_e)^2, which keeps logits small (Zoph et al., 2022, eq. 5).

    Args:
        logits: (..., E).
        attention_mask: (...), 0 for padding.

    Raises:
        ConfigError: the mask has another shape.
    """
    logits, kept = _masked(logits, attention_mask)
    return _mean(logits.logsumexp(-1).square(), kept)


def compute_load_balancing_loss(
    weights: torch.Tensor, attention_mask: torch.Tensor | None = None, *, probabilities: torch.Tensor | None = None
) -> torch.Tensor:
    """Return E sum_e f_e P_e: 1 where the experts share the tokens alike, E where one takes all.

    This is eq. 4 to 6 of Fedus et al. (2021, "Switch Transformers"). f_e is the share of choices that fell on expert e
    and carries no gradient: a token chooses the experts that it weighs above 0, each counting 1/k, where transformers
    counts each 1 and so reports k times as much. A token that weighs all of them, in dense routing, has chosen nothing;
    there its heaviest expert counts, as in the paper, so that the loss sees one expert outweighing the others.

    P_e is the mean probability of expert e. It is best passed in: the weights of a router that keeps one expert do not
    contain those of the others. Otherwise it is taken from the weights, over their sum. That sum is held constant, for
    w/w = 1 would leave the router of one expert without a gradient; so an expert with too many tokens is still made
    less sure of them. A token without any weight was padding to the router, and counts neither here nor there.

    Args:
        weights: (..., E), 0 for an expert that was not chosen.
        attention_mask: (...), 0 for padding.
        probabilities: (..., E), the softmax of the logits.

    Raises:
        ConfigError: the mask or the probabilities have another shape.
    """
    weights, kept = _masked(weights, attention_mask)
    chosen = weights.detach() > 0
    kept = kept & chosen.any(-1)
    if probabilities is None:
        p = weights / weights.sum(-1, keepdim=True).detach().clamp(min=torch.finfo(torch.float32).tiny)
    elif probabilities.shape == weights.shape:
        p, _ = _masked(probabilities, kept)
    else:
        found, wanted = tuple(probabilities.shape), tuple(weights.shape)
        raise ConfigError(f"probabilities are {found} and weights {wanted}; they must have the same shape")
    return weights.shape[-1] * (_mean(choices_of(weights), kept) * _mean(p, kept)).sum()


def choices_of(weights: torch.Tensor) -> torch.Tensor:
    """Return the share of each expert in a token's choices (..., E), as `compute_load_balancing_loss` counts them."""
    chosen = weights.detach() > 0
    heaviest = torch.nn.functional.one_hot(weights.detach().argmax(-1), weights.shape[-1]).bool()
    chosen = torch.where(chosen.all(-1, keepdim=True), heaviest, chosen)
    return chosen / chosen.sum(-1, keepdim=True).clamp(min=1)


def compute_routing_loss(
    routings: Iterable[tuple[torch.Tensor, torch.Tensor | None]],
    attention_mask: torch.Tensor,
    *,
    load_balancing_coeff: float,
    entropy_penalty_coeff: float,
) -> torch.Tensor:
    """Return the loss of routing to add to that of the task, a mean over the layers that have a choice; 0 without any.

    For a layer it is load_balancing_coeff * `compute_load_balancing_loss` + entropy_penalty_coeff *
    `compute_router_entropy`.

    Args:
        routings: weights (B, T, E) and logits (B, T, E) of each layer; without logits there was nothing to choose.
        attention_mask: (B, T), 0 for padding.
        load_balancing_coeff: of the first.
        entropy_penalty_coeff: of the second.

    Raises:
        ConfigError: the mask has another shape.
    """
    terms = [
        load_balancing_coeff
        * compute_load_balancing_loss(weights, attention_mask, probabilities=logits.float().softmax(-1))
        + entropy_penalty_coeff * compute_router_entropy(logits, attention_mask)
        for weights, logits in routings
        if logits is not None
    ]
    if not terms:
        return torch.zeros((), device=attention_mask.device)
    return torch.stack([term.to(attention_mask.device) for term in terms]).mean()


def _masked(values: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (..., E) in float32 with 0 for padding, which may hold anything, and the mask (...) as truth values."""
    values = values.float()
    if attention_mask is None:
        return values, torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
    if attention_mask.shape != values.shape[:-1]:
        found, wanted = tuple(attention_mask.shape), tuple(values.shape[:-1])
        raise ConfigError(f"attention_mask is {found}, wanted {wanted}: one number for each token")
    kept = attention_mask.to(values.device).bool()
    return values.masked_fill(~kept[..., None], 0.0), kept


def _entropy(log_p: torch.Tensor) -> torch.Tensor:
    return -(log_p.exp() * log_p).sum(-1)


def _mean(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Average (...) or (..., E) over the kept tokens; branching on their count would force a device sync."""
    rows = values.reshape(kept.numel(), *values.shape[kept.dim() :])
    share = kept.reshape(-1, *[1] * (rows.dim() - 1)).float()
    return (rows * share).sum(0) / share.sum().clamp(min=1.0)
