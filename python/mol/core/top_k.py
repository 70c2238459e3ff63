"""The weights of the experts of a token by its logits: the softmax, or the k largest of it."""

from __future__ import annotations

import torch

from mol.errors import ConfigError


def top_k_weights(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Return weights (..., E) for logits (..., E), of which the k largest are not 0; among equals, the first.

    With k = E this is the softmax. For k > 1 the weights sum to 1 (Jiang et al., 2024, "Mixtral"). For k = 1 it keeps
    its probability (Fedus et al., 2021, "Switch Transformers"): normalised it would be 1, and without a gradient.

    Raises:
        ConfigError: k is not 1 to E.
    """
    experts = logits.shape[-1]
    if not 1 <= k <= experts:
        raise ConfigError(f"top_k {k} is not 1 to {experts}, the number of experts")
    probabilities = logits.softmax(-1)
    if k == experts:
        return probabilities
    chosen = logits.argsort(stable=True, dim=-1, descending=True)[..., :k]
    best = probabilities.gather(-1, chosen)
    if k > 1:
        best = best / best.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, chosen, best)
